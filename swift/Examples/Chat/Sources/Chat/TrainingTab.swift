import Charts
import ChatModels
import MetalCandle
import SwiftUI

struct TrainingTab: View {
    var body: some View {
        LoadedView { (model: LanguageModel) in TrainingView(training: TrainingModel(model)) }
    }
}

struct TrainingView: View {
    @State var training: TrainingModel
    @State private var question = ""
    @State private var isChoosing = false

    var body: some View {
        Form {
            if let failure = training.failure { Label(failure, systemImage: "exclamationmark.triangle") }
            Section("Examples") {
                Button("Choose a JSONL file…") { isChoosing = true }.disabled(training.isBusy)
                LabeledContent("Examples", value: training.exampleCount, format: .number)
                Stepper("Epochs: \(training.epochs)", value: $training.epochs, in: 1...100)
            }
            Section("Training") {
                if training.isBusy {
                    Button("Stop", role: .cancel) { training.stop() }
                } else {
                    Button("Train") { training.train() }.disabled(!training.canTrain)
                }
                if let fraction = training.fraction { ProgressView(value: fraction) }
                Chart(training.losses) { point in
                    LineMark(x: .value("Step", point.id), y: .value("Loss", point.loss))
                }
                .frame(height: 200)
            }
            Section("With and without") {
                TextField("Ask something", text: $question).onSubmit { training.compare(question) }
                Button("Compare") { training.compare(question) }.disabled(!training.canCompare || question.isEmpty)
                if let comparison = training.comparison {
                    LabeledContent("Without", value: comparison.without)
                    LabeledContent("With", value: comparison.with)
                }
            }
        }
        .navigationTitle("LoRA")
        .fileImporter(isPresented: $isChoosing, allowedContentTypes: [.json, .plainText, .data]) { result in
            guard let url = try? result.get() else { return }
            // For as long as the app runs: the file is read behind this.
            _ = url.startAccessingSecurityScopedResource()
            training.open(url)
        }
        .onDisappear { training.stop() }
    }
}
