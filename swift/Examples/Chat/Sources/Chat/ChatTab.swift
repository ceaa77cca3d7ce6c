import ChatModels
import MetalCandle
import SwiftUI

struct ChatTab: View {
    var body: some View {
        LoadedView { (model: LanguageModel) in ChatView(chat: ChatModel(model)) }
    }
}

struct ChatView: View {
    @State var chat: ChatModel
    /// The question that the draft replaces.
    @State private var edited: ChatModel.Message?

    var body: some View {
        VStack(spacing: 0) {
            ScrollView {
                LazyVStack(spacing: 8) {
                    ForEach(chat.messages) { message in
                        Bubble(message: message).contextMenu {
                            if message.isFromPerson, !chat.isResponding {
                                Button("Edit", systemImage: "pencil") { (edited, chat.draft) = (message, message.text) }
                            }
                        }
                    }
                    if let prefill = chat.prefill { ProgressView("Reading", value: prefill) }
                    if let stopReason = chat.stopReason { Text(stopReason).font(.caption).foregroundStyle(.secondary) }
                }
                .padding()
            }
            .defaultScrollAnchor(.bottom)
            input.padding()
        }
        .navigationTitle("Chat")
        .toolbar {
            ToolbarItem {
                Button("Again", systemImage: "arrow.clockwise") { chat.regenerate() }.disabled(!chat.canRegenerate)
            }
            ToolbarItem { Button("New", systemImage: "square.and.pencil") { Task { await chat.reset() } } }
            if let speed = chat.tokensPerSecond {
                ToolbarItem { Text("\(speed, format: .number.precision(.fractionLength(0))) tokens/s").monospacedDigit() }
            }
        }
        .onDisappear { chat.stop() }
    }

    private func send() {
        guard let question = edited else { return chat.send() }
        chat.edit(question, to: chat.draft)
        (edited, chat.draft) = (nil, "")
    }

    private var input: some View {
        HStack {
            TextField("Ask something", text: $chat.draft, axis: .vertical)
                .textFieldStyle(.roundedBorder)
                .onSubmit { send() }
            if chat.isResponding {
                Button("Stop", systemImage: "stop.circle.fill") { chat.stop() }
            } else {
                Button("Send", systemImage: "arrow.up.circle.fill") { send() }.disabled(!chat.canSend)
            }
        }
        .labelStyle(.iconOnly)
    }
}

struct Bubble: View {
    let message: ChatModel.Message

    var body: some View {
        Text(message.text.isEmpty ? "…" : message.text)
            .textSelection(.enabled)
            .padding(10)
            .background(message.isFromPerson ? AnyShapeStyle(.tint.opacity(0.2)) : AnyShapeStyle(.quaternary), in: .rect(cornerRadius: 12))
            .frame(maxWidth: .infinity, alignment: message.isFromPerson ? .trailing : .leading)
    }
}
