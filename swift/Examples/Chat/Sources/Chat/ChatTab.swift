import ChatModels
import MetalCandle
import SwiftUI

struct ChatTab: View {
    var body: some View {
        LoadedView { (model: LanguageModel) in ConversationView(model: model) }
    }
}

/// Goes on with the conversation that the app was left in, or begins one.
struct ConversationView: View {
    let model: LanguageModel
    @State private var chat: ChatModel?
    @Environment(\.scenePhase) private var phase
    private let directory = URL.applicationSupportDirectory.appending(path: "conversation")

    var body: some View {
        Group {
            if let chat { ChatView(chat: chat) } else { ProgressView() }
        }
        .task {
            guard chat == nil else { return }
            chat = (try? await ChatModel(from: directory, model, tools: [.clock])) ?? ChatModel(model, tools: [.clock])
        }
        .onChange(of: phase) {
            guard phase == .background, let chat else { return }
            Task { try? await chat.save(to: directory) }
        }
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
        .navigationTitle(chat.topic?.title ?? "Chat")
        .task(id: chat.isResponding) { if chat.topic == nil { await chat.findTopic() } }
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
        VStack(alignment: .leading) {
            if !message.tools.isEmpty {
                Label(message.tools.joined(separator: ", "), systemImage: "wrench.and.screwdriver").font(.caption)
            }
            if !message.text.isEmpty || message.tools.isEmpty { Text(message.text.isEmpty ? "…" : message.text).textSelection(.enabled) }
        }
        .padding(10)
        .background(message.isFromPerson ? AnyShapeStyle(.tint.opacity(0.2)) : AnyShapeStyle(.quaternary), in: .rect(cornerRadius: 12))
        .frame(maxWidth: .infinity, alignment: message.isFromPerson ? .trailing : .leading)
    }
}
