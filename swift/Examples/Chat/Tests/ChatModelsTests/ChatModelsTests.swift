import ChatModels
import Foundation
import MetalCandle
import Testing

private let root = (0..<6).reduce(URL(filePath: #filePath)) { url, _ in url.deletingLastPathComponent() }
private let coder = root.appending(path: "models/tiny-coder")
private let embedder = root.appending(path: "models/tiny-embed")
private let question = "What does `Vec::push` do?"
private let answer = "Appends an element to the back of a collection."

/// Waits for what another task is about to do, half a minute at most.
@MainActor private func eventually(_ condition: () -> Bool, sourceLocation: SourceLocation = #_sourceLocation) async {
    let deadline = ContinuousClock.now + .seconds(30)
    while !condition() {
        guard ContinuousClock.now < deadline else {
            Issue.record("it never happened", sourceLocation: sourceLocation)
            return
        }
        await Task.yield()
    }
}

@MainActor @Suite(.serialized) struct ChatModelsTests {
    @Test func aLoaderBecomesReadyAndIdleAgain() async throws {
        let loader = ModelLoader<LanguageModel>()
        #expect(loader.model == nil && loader.fraction == nil)
        loader.load(.directory(coder))
        #expect(loader.fraction == 0)
        await loader.finish()
        let model = try #require(loader.model)
        #expect(model.info.architecture == "qwen2")
        loader.unload()
        #expect(loader.model == nil && !model.isLoaded)
    }

    @Test func aLoaderShowsItsProgress() async throws {
        let loader = ModelLoader<LanguageModel>()
        var seen: [Double] = []
        loader.load(.directory(coder))
        await eventually {
            if let fraction = loader.fraction, fraction != seen.last { seen.append(fraction) }
            return loader.model != nil
        }
        #expect(seen == seen.sorted() && seen.first == 0)
    }

    @Test func aLoaderSaysWhatFailed() async {
        let loader = ModelLoader<LanguageModel>()
        loader.load(.directory(URL(filePath: "/nowhere")))
        await loader.finish()
        guard case .failed(let message) = loader.state else { Issue.record("\(loader.state)"); return }
        #expect(message.contains("/nowhere"))
        loader.load(.hub(HubModel("nobody/nothing", cache: URL(filePath: "/nowhere"), isOffline: true)))
        await loader.finish()
        guard case .failed(let message) = loader.state else { Issue.record("\(loader.state)"); return }
        #expect(message.contains("nobody/nothing"))
    }

    @Test func aLoaderCanBeCancelled() async {
        let loader = ModelLoader<LanguageModel>()
        loader.load(.directory(coder))
        loader.cancel()
        await loader.finish()
        guard case .idle = loader.state else { Issue.record("\(loader.state)"); return }
        // A second model takes the place of the first, which is still being loaded.
        loader.load(.directory(coder))
        loader.load(.directory(URL(filePath: "/nowhere")))
        await loader.finish()
        guard case .failed = loader.state else { Issue.record("\(loader.state)"); return }
    }

    @Test func aQuestionIsAnswered() async throws {
        let chat = ChatModel(try await LanguageModel.load(from: coder), options: ResponseOptions(temperature: 0))
        #expect(!chat.canSend)
        chat.draft = "  \(question)\n"
        #expect(chat.canSend)
        chat.send()
        #expect(chat.isResponding && !chat.canSend && chat.draft.isEmpty)
        await chat.finish()
        #expect(!chat.isResponding)
        #expect(chat.messages.map(\.text) == [question, answer])
        #expect(chat.messages.map(\.isFromPerson) == [true, false])
        #expect(chat.stopReason == nil)
        #expect((chat.tokensPerSecond ?? 0) > 0)
        await chat.reset()
        #expect(chat.messages.isEmpty && chat.tokensPerSecond == nil)
    }

    @Test func theStopButtonKeepsWhatCame() async throws {
        let model = try await LanguageModel.load(from: coder)
        let endless = ResponseOptions(temperature: 1, logitBias: [4095: -.infinity, 4093: -.infinity], seed: 1)
        let chat = ChatModel(model, options: endless)
        chat.draft = question
        chat.send()
        await eventually { chat.messages.last?.text.isEmpty == false }
        chat.stop()
        await chat.finish()
        #expect(chat.stopReason == "Stopped")
        #expect(chat.messages.count == 2)
        // The next question works.
        chat.draft = question
        chat.send()
        await eventually { chat.messages.count == 4 && !chat.messages[3].text.isEmpty }
        await chat.reset()
        #expect(chat.messages.isEmpty && !chat.isResponding)
    }

    @Test func theLimitIsTold() async throws {
        let chat = ChatModel(try await LanguageModel.load(from: coder), options: ResponseOptions(maximumTokens: 2, temperature: 0))
        chat.draft = question
        chat.send()
        await chat.finish()
        #expect(chat.stopReason == "The answer reached its limit")
    }

    @Test func aFailureIsToldAndTheQuestionCanBeSentAgain() async throws {
        let model = try await LanguageModel.load(from: coder)
        let chat = ChatModel(model)
        model.unload()
        chat.draft = question
        chat.send()
        await chat.finish()
        #expect(chat.stopReason?.contains("unloaded") == true)
        #expect(chat.messages.isEmpty && chat.draft == question && chat.canSend)
    }

    @Test func anAnswerIsMadeAgainAndAQuestionAskedOtherwise() async throws {
        let model = try await LanguageModel.load(from: coder)
        let chat = ChatModel(model, instructions: "Be brief.", options: ResponseOptions(temperature: 0))
        #expect(!chat.canRegenerate)
        chat.draft = question
        chat.send()
        #expect(!chat.canRegenerate && chat.messages.map(\.text) == [question, ""])
        await chat.finish()
        let first = chat.messages
        chat.regenerate()
        #expect(chat.messages.map(\.text) == [question, ""])
        await chat.finish()
        #expect(chat.messages == first && chat.canRegenerate)
        chat.edit(first[1], to: "not a question")
        #expect(!chat.isResponding)
        chat.edit(first[0], to: "What is a `HashMap`?")
        #expect(chat.messages.map(\.text) == ["What is a `HashMap`?", ""])
        await chat.finish()
        #expect(chat.messages.count == 2 && chat.messages[1].text != first[1].text)

        let directory = FileManager.default.temporaryDirectory.appending(path: "metal-candle-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: directory) }
        try await chat.save(to: directory)
        let again = try await ChatModel(from: directory, model)
        #expect(again.messages == chat.messages && again.canRegenerate)
    }

    @Test func aToolIsCalledAndItsResultAnswered() async throws {
        let model = try await LanguageModel.load(from: coder)
        // The small model was never shown a tool: its answer has to be a call, and its arguments are what the schema lets it write.
        let zone = JSONSchema.object(["timeZone": .choice(["Europe/Rome"])])
        let asked = ToolDefinition(name: CallableTool.clock.definition.name, description: "", parameters: zone.json)
        let clock = CallableTool(asked, run: CallableTool.clock.run)
        let options = ResponseOptions(temperature: 0, toolChoice: .tool("clock"), answerFormat: "hermes")
        let chat = ChatModel(model, tools: [clock], options: options)
        chat.draft = question
        chat.send()
        await chat.finish()
        #expect(chat.messages.map(\.isFromPerson) == [true, false, false] && chat.messages.map(\.id) == [0, 1, 3])
        #expect(chat.messages.map(\.tools) == [[], ["clock"], []] && chat.messages[2].text.isEmpty == false)
        #expect(chat.stopReason == nil && chat.draft.isEmpty)
        // Behind the result of the tool, where it has to call again.
        chat.regenerate()
        #expect(chat.messages.map(\.id) == [0, 1, 3])
        await chat.finish()
        #expect(chat.messages.map(\.tools) == [[], ["clock"], ["clock"], []])

        let told = try await CallableTool.results(of: [ToolCall(name: "clock", arguments: #"{"timeZone":"Europe/Rome"}"#)], by: [.clock])
        #expect(told[0].content.wholeMatch(of: /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+0[12]:?00/) != nil, "\(told[0].content)")
        let nowhere = try await CallableTool.results(of: [ToolCall(name: "clock", arguments: #"{"timeZone":"Moon"}"#)], by: [.clock])
        #expect(nowhere[0].content.hasPrefix("error: ") && nowhere[0].content.hasSuffix("Moon"))
    }

    @Test func theTopicIsAskedOfAFork() async throws {
        let chat = ChatModel(try await LanguageModel.load(from: coder), options: ResponseOptions(temperature: 0))
        await chat.findTopic()
        #expect(chat.topic == nil)
        chat.draft = question
        chat.send()
        await chat.finish()
        let messages = chat.messages
        await chat.findTopic()
        let topic = try #require(chat.topic)
        #expect((1...40).contains(topic.title.count) && chat.messages == messages)
        await chat.reset()
        #expect(chat.topic == nil)
    }

    @Test func theReadingOfALongQuestionIsShown() async throws {
        let options = ResponseOptions(maximumTokens: 2, temperature: 0)
        let chat = ChatModel(try await LanguageModel.load(from: coder), options: options)
        chat.draft = String(repeating: "fn main() { } ", count: 120)
        var seen: [Double] = []
        chat.send()
        await eventually {
            if let prefill = chat.prefill, prefill != seen.last { seen.append(prefill) }
            return !chat.isResponding
        }
        #expect(!seen.isEmpty && seen == seen.sorted() && chat.prefill == nil)
    }

    @Test func theNearestLineComesFirst() async throws {
        let search = SearchModel(try await EmbeddingModel.load(from: embedder))
        let text = try String(contentsOf: root.appending(path: "examples/data/standard_library.txt"), encoding: .utf8)
        // Typed before the index is there: the results follow it.
        search.index(text)
        search.query = "How do I append an element to a vector?"
        #expect(search.isIndexing)
        await eventually { !search.results.isEmpty || search.failure != nil }
        await search.finish()
        #expect(search.results.count == 10)
        #expect(search.results.first?.line == "Appends an element to the end of a vector.")
        #expect(search.failure == nil && !search.isIndexing)
        search.query = ""
        await search.finish()
        #expect(search.results.isEmpty)
    }

    @Test func aSearchSaysWhatFailed() async throws {
        let model = try await EmbeddingModel.load(from: embedder)
        let search = SearchModel(model)
        model.unload()
        search.index("a\nb")
        await search.finish()
        #expect(search.failure?.contains("unloaded") == true)
        #expect(!search.isIndexing && search.lines == ["a", "b"])
    }

    @Test func trainingChangesTheAnswer() async throws {
        let file = FileManager.default.temporaryDirectory.appending(path: "\(UUID().uuidString).jsonl")
        defer { try? FileManager.default.removeItem(at: file) }
        let line = #"{"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A candle."}]}"#
        try Data("\(line)\n\(line)\n".utf8).write(to: file)

        let model = try await LanguageModel.load(from: coder)
        let training = TrainingModel(model, responseOptions: ResponseOptions(maximumTokens: 8, temperature: 0))
        #expect(!training.canTrain && !training.canCompare)
        training.open(file)
        await training.finish()
        #expect(training.exampleCount == 2 && training.canTrain)
        training.epochs = 40
        training.train()
        #expect(training.isBusy && !training.canTrain)
        await training.finish()
        #expect(training.losses.map(\.id) == Array(1...40))
        #expect(training.fraction == 1 && training.failure == nil)
        #expect((training.losses.last?.loss ?? 9) < (training.losses.first?.loss ?? 0) / 2)
        training.compare("Who are you?")
        await training.finish()
        #expect(training.comparison?.with == "A candle.")
        #expect(training.comparison?.without.isEmpty == false && training.comparison?.without != "A candle.")

        // Stopped in the middle: what was learnt is an adapter.
        training.epochs = 1000
        training.train()
        await eventually { !training.losses.isEmpty || training.failure != nil }
        training.stop()
        await training.finish()
        #expect(training.losses.count < 1000 && training.adapter != nil && training.failure == nil)

        training.open(URL(filePath: "/nowhere"))
        await training.finish()
        #expect(training.failure?.contains("/nowhere") == true)
    }

    @Test func theGaugeShowsMemory() {
        let gauge = MemoryGauge()
        gauge.refresh()
        #expect((gauge.fraction ?? 0) > 0 && (gauge.fraction ?? 1) < 1)
    }
}
