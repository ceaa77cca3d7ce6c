import Dispatch
import Foundation
import MetalCandle
import Testing

extension MetalCandleTests { @Suite struct LanguageModels {
    @Test func progressRisesToOne() async throws {
        let recorder = Recorder<LoadProgress>()
        let model = try await LanguageModel.load(from: tinyCoder) { recorder.append($0) }
        let fractions = recorder.values.map(\.fraction)
        #expect(fractions.count > 2)
        #expect(zip(fractions, fractions.dropFirst()).allSatisfy { $0 <= $1 })
        #expect(fractions.last == 1)
        #expect(recorder.values.contains { $0.phase == .reading && $0.fraction < 1 })
        #expect(recorder.values.allSatisfy { $0.phase != .downloading })
        #expect(model.isLoaded)
    }

    @Test func infoSaysWhatTheModelIs() async throws {
        let info = try await loadCoder().info
        #expect(info.architecture == "qwen2")
        #expect(info.contextLength == 1024)
        #expect(info.vocabularySize == 4096)
        #expect(info.hiddenSize == 256)
        #expect(info.layerCount == 8)
        #expect((7_000_000..<8_000_000).contains(info.parameterCount))
        #expect(info.weightType == .bfloat16)
        #expect(info.generatesText && info.hasChatTemplate && info.supportsAdapters)
    }

    @Test func aModelSaysWhatComputesIt() async throws {
        let backend = try await loadCoder().backendJSON()
        #expect(backend.contains("\"weights\":{"))
    }

    @Test func optionsReachTheModel() async throws {
        let options = ModelOptions(device: try ComputeDevice(.cpu), weightType: .float32, maximumContext: 64, tokenizer: tinyCoder)
        let info = try await loadCoder(options).info
        #expect(info.weightType == .float32)
        #expect(info.contextLength == 64)
        await expect(.invalidArgument, "maximumContext") { try await loadCoder(ModelOptions(maximumContext: 0)) }
        await expect(.notFound, "/nowhere") { try await loadCoder(ModelOptions(tokenizer: URL(filePath: "/nowhere"))) }
    }

    @Test func aQuantizedModelAnswers() async throws {
        let cpu = try ComputeDevice(.cpu)
        let options = ModelOptions(device: cpu, quantization: .q8_0)
        #expect(try await ChatSession(loadCoder(options), options: greedy).respond(to: question).text == answer)
        let whole = try await LanguageModel.estimatedMemoryBytes(of: tinyCoder, options: ModelOptions(device: cpu))
        for quantization in ModelOptions.Quantization.allCases {
            let options = ModelOptions(device: cpu, quantization: quantization)
            #expect(try await LanguageModel.estimatedMemoryBytes(of: tinyCoder, options: options) < whole)
        }
    }

    @Test(arguments: [false, true]) func aQuantizedModelAnswersExactlyToo(_ isExact: Bool) async throws {
        let options = ModelOptions(device: try ComputeDevice(.cpu), quantization: .q8_0, isExact: isExact)
        #expect(try await ChatSession(loadCoder(options), options: greedy).respond(to: question).text == answer)
    }

    @Test(arguments: ModelOptions.KVCache.allCases) func aModelAnswersWithEachKVCache(_ kvCache: ModelOptions.KVCache) async throws {
        let cpu = try ComputeDevice(.cpu)
        let options = ModelOptions(device: cpu, kvCache: kvCache)
        #expect(try await ChatSession(loadCoder(options), options: greedy).respond(to: question).text == answer)
        let usual = try await LanguageModel.estimatedMemoryBytes(of: tinyCoder, options: ModelOptions(device: cpu))
        let bytes = try await LanguageModel.estimatedMemoryBytes(of: tinyCoder, options: options)
        #expect(kvCache == .f32 ? bytes == usual : bytes < usual)
    }

    @Test func aMissingModelIsNotFound() async {
        await expect(.notFound, "/nowhere") { try await LanguageModel.load(from: URL(filePath: "/nowhere")) }
        await expect(.invalidArgument, "directory") { try await LanguageModel.load(from: URL(string: "https://localhost/model")!) }
    }

    @Test func aDamagedFileIsAnErrorOfItsFormat() async throws {
        let directory = try TemporaryDirectory()
        let model = try directory.copy(of: tinyCoder)
        let weights = model.appending(path: "model.safetensors")
        try Data(contentsOf: weights).prefix(100_000).write(to: weights)
        await expect(.format, "model.safetensors") { try await LanguageModel.load(from: model) }
        try Data("{".utf8).write(to: model.appending(path: "config.json"))
        await expect(.format, "config.json") { try await LanguageModel.load(from: model) }
    }

    @Test func anUnknownArchitectureIsUnsupported() async throws {
        let directory = try TemporaryDirectory()
        let model = try directory.copy(of: tinyCoder)
        let config = model.appending(path: "config.json")
        let text = try String(contentsOf: config, encoding: .utf8).replacing("\"qwen2\"", with: "\"abacus\"")
            .replacing("Qwen2ForCausalLM", with: "AbacusForCausalLM")
        try text.write(to: config, atomically: true, encoding: .utf8)
        await expect(.unsupported, "abacus") { try await LanguageModel.load(from: model) }
    }

    @Test func anEncoderIsNoLanguageModel() async {
        await expect(.unsupported, "bert") { try await LanguageModel.load(from: tinyEmbed) }
    }

    @Test func loadingCanBeCancelled() async {
        await expectCancelled {
            try await Task {
                withUnsafeCurrentTask { $0?.cancel() }
                return try await loadCoder()
            }.value
        }
        // In the middle: the first word of progress waits for the cancellation.
        await expectCancelled {
            let (begun, cancelled) = (AsyncStream.makeStream(of: Void.self), DispatchSemaphore(value: 0))
            let loading = Task {
                try await LanguageModel.load(from: tinyCoder) { _ in
                    begun.continuation.finish()
                    cancelled.wait()
                    cancelled.signal()
                }
            }
            for await _ in begun.stream {}
            loading.cancel()
            cancelled.signal()
            return try await loading.value
        }
    }

    @Test func memoryIsEstimatedWithoutLoading() async throws {
        let whole = try await LanguageModel.estimatedMemoryBytes(of: tinyCoder)
        let short = try await LanguageModel.estimatedMemoryBytes(of: tinyCoder, options: ModelOptions(maximumContext: 64))
        #expect(whole > 7_000_000 * 2)
        #expect(short < whole)
    }

    @Test func tokensAreThoseOfTheVocabulary() async throws {
        let model = try await loadCoder()
        #expect(try await model.tokens("<|im_start|>") == [4094])
        #expect(try await model.tokenCount("") == 0)
        let count = try await model.tokenCount("fn main() { println!(\"🦀\"); }")
        #expect((5..<30).contains(count))
    }

    @Test func whatTheModelWouldSayIsLikelierThanWhatItWouldNot() async throws {
        let (model, prompt) = (try await loadCoder(), "fn main() {")
        let said = try await model.complete(prompt, options: ResponseOptions(maximumTokens: 5, temperature: 0)).completion.tokens
        let likely = try await model.logProbabilities(of: said, after: prompt)
        let other = try await model.logProbabilities(of: said.reversed(), after: prompt)
        #expect(likely.count == 5 && likely.allSatisfy { $0 <= 0 })
        #expect(likely.reduce(0, +) > other.reduce(0, +))
        #expect(try await model.logProbabilities(of: [], after: prompt) == [])
        #expect(try await model.logProbabilities(of: Array(said.prefix(1)), after: prompt)[0] == likely[0])
        await #expect(throws: MetalCandleError.self) { try await model.logProbabilities(of: [1_000_000], after: prompt) }
    }

    @Test func completionContinuesAText() async throws {
        let model = try await loadCoder()
        try await model.prewarm()
        let options = ResponseOptions(maximumTokens: 12, temperature: 0)
        let whole = try await model.complete("fn main() {", options: options)
        #expect(whole.completion.finishReason == .maximumTokens)
        #expect(whole.completion.tokens.count == 12)
        var text = ""
        for try await piece in model.streamCompletion(of: "fn main() {", options: options).snapshots {
            #expect(piece.hasPrefix(text) && piece != text)
            text = piece
        }
        #expect(text == whole.text)
        #expect(!text.isEmpty)
        await expect(.invalidArgument) { try await model.complete("") }
    }

    @Test func optionsAsJSONCountMore() async throws {
        let model = try await loadCoder(ModelOptions(json: #"{"max_context": 64}"#))
        #expect(model.info.contextLength == 64)
        let options = ResponseOptions(maximumTokens: 9, json: #"{"max_tokens": 2, "ignore_eos": true}"#)
        #expect(try await model.complete("fn", options: options).completion.tokens.count == 2)
        await expect(.invalidArgument, "top_k") { try await model.complete("fn", options: ResponseOptions(json: #"{"top_k": -1}"#)) }
    }

    @Test func anUnloadedModelRefusesWorkAndKeepsItsHistory() async throws {
        let model = try await loadCoder()
        let session = ChatSession(model)
        _ = try await session.respond(to: question, options: greedy)
        model.unload()
        #expect(!model.isLoaded)
        await expect(.invalidArgument, "unloaded") { try await session.respond(to: question) }
        await expect(.invalidArgument, "unloaded") { try await model.tokenCount("a") }
        #expect(session.history == [.user(question), .assistant(answer)])
        #expect(!session.isResponding)
        #expect(model.info.architecture == "qwen2")
    }

    @Test func aDownloaderBringsTheFiles() async throws {
        struct Local: ModelDownloader {
            func download(_ id: String, revision: String, progress: @escaping @Sendable (Double) -> Void) async throws -> URL {
                for step in 0...4 { progress(Double(step) / 4) }
                guard revision == "v1" else { throw CocoaError(.fileNoSuchFile) }
                return root.appending(path: "models/" + id)
            }
        }
        let recorder = Recorder<LoadProgress>()
        let model = try await LanguageModel.load("tiny-coder", revision: "v1", using: Local()) { recorder.append($0) }
        #expect(model.info.layerCount == 8)
        let fractions = recorder.values.map(\.fraction)
        #expect(recorder.values.first?.phase == .downloading)
        #expect(recorder.values.contains { $0.phase == .downloading && $0.fraction == 0.4 })
        #expect(zip(fractions, fractions.dropFirst()).allSatisfy { $0 <= $1 })
        #expect(fractions.last == 1)
        await #expect(throws: CocoaError.self) { try await LanguageModel.load("tiny-coder", using: Local()) }
        let embedder = try await EmbeddingModel.load("tiny-embed", revision: "v1", using: Local())
        #expect(embedder.info.hiddenSize == 192)
    }

    @Test func theHubIsAskedForWhatItsCacheLacks() async throws {
        let cache = try TemporaryDirectory()
        let hub = HubModel("nobody/nothing", revision: "v1", token: "none", cache: cache.url, isOffline: true)
        await expect(.notFound, "nobody/nothing") { try await LanguageModel.load(hub: hub) }
        await expect(.notFound, "nobody/nothing") { try await EmbeddingModel.load(hub: hub) }
    }

    @Test func devicesSayWhatTheyAre() async throws {
        let device = try ComputeDevice()
        #expect(device.kind != .automatic)
        #expect(!device.name.isEmpty)
        #expect(ComputeDevice.count(of: .cpu) == 1)
        let memory = try device.memory()
        #expect(memory.usedBytes > 0 && memory.usedBytes < memory.totalBytes)
        await expect(.invalidArgument, "index") { try ComputeDevice(.cpu, index: -1) }
        await expect(.notFound, "1") { try ComputeDevice(.cpu, index: 1) }
    }
}}
