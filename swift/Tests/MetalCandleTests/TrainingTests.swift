import Foundation
import Testing

@testable import MetalCandle

extension MetalCandleTests { @Suite struct Training {
    /// Facts that the tiny model does not know.
    private let facts = (0..<12).map { index in
        TrainingExample.conversation([
            .user("What is the colour of stone \(index)?"), .assistant(["Red as rust.", "Blue as the sea.", "Green as moss."][index % 3]),
        ])
    }
    private let adapter = AdapterConfiguration(rank: 4, alpha: 8, seed: 1)
    private let quick = TrainingOptions(epochs: 2, batchSize: 3, learningRate: 3e-3)
    /// 100 steps: what happens at one of the first does not come too late, though training goes on meanwhile.
    private let long = TrainingOptions(epochs: 25, batchSize: 3, learningRate: 3e-3)

    @Test func theLossFallsAndTheAdapterAnswers() async throws {
        let model = try await loadCoder()
        let session = ChatSession(model, options: ResponseOptions(maximumTokens: 12, temperature: 0))
        let before = try await session.respond(to: "What is the colour of stone 1?").text
        try session.reset()

        let trainer = try await LoRATrainer(model, adapter: adapter, options: TrainingOptions(epochs: 12, batchSize: 3, learningRate: 3e-3))
        let data = try TrainingData(Array(facts.prefix(6)))
        #expect(data.count == 6)
        var steps: [TrainingStep] = []
        var summary: TrainingSummary?
        for try await event in trainer.train(on: data) {
            switch event {
            case .step(let step): steps.append(step)
            case .validation, .checkpoint: Issue.record("\(event) was not asked for")
            case .finished(let end): summary = end
            }
        }
        #expect(steps.map(\.step) == Array(1...24))
        #expect(steps.allSatisfy { $0.totalSteps == 24 && $0.targetTokens > 0 && $0.gradientNorm > 0 && $0.learningRate == 3e-3 })
        #expect(steps.first?.epoch == 1 && steps.last?.epoch == 12)
        let (first, last) = (steps.prefix(2).map(\.loss).reduce(0, +), steps.suffix(2).map(\.loss).reduce(0, +))
        #expect(last < first / 4, "\(first) to \(last)")
        #expect(summary?.stepCount == 24 && summary?.bestValidationLoss == nil)
        #expect(trainer.stepCount == 24)

        let trained = try await trainer.adapter()
        #expect(trained.rank == 4 && trained.alpha == 8)
        session.adapters = [AttachedAdapter(trained)]
        #expect(try await session.respond(to: "What is the colour of stone 1?").text == "Blue as the sea.")
        try session.reset()
        session.adapters = []
        #expect(try await session.respond(to: "What is the colour of stone 1?").text == before)
        #expect(before != "Blue as the sea.")
    }

    @Test func aTrainingThatIsLeftGoesOnAsIfItHadNotBeen() async throws {
        let directory = try TemporaryDirectory()
        let (model, data) = (try await loadCoder(), try TrainingData(facts))
        let whole = try await LoRATrainer(model, adapter: adapter, options: long)
        try await whole.train(on: data).collect()

        // Left in the middle, and taken up again at once.
        let left = try await LoRATrainer(model, adapter: adapter, options: long)
        for try await event in left.train(on: data) { if case .step(let step) = event, step.step == 3 { break } }
        _ = try await left.adapter()
        #expect(left.stepCount < 100)
        let end = try await left.train(on: data).collect()
        #expect(end.stepCount == 100)
        #expect(try await weights(of: left, in: directory) == weights(of: whole, in: directory))

        // From a checkpoint, as another process would.
        let first = try await LoRATrainer(model, adapter: adapter, options: long)
        for try await event in first.train(on: data) { if case .step(let step) = event, step.step == 2 { break } }
        let checkpoint = directory.url.appending(path: "checkpoint")
        try await first.save(to: checkpoint)
        let resumed = try await LoRATrainer.resume(from: checkpoint, model: loadCoder(), options: long)
        #expect(resumed.stepCount == first.stepCount && resumed.stepCount >= 2)
        try await resumed.train(on: data).collect()
        #expect(try await weights(of: resumed, in: directory) == weights(of: whole, in: directory))

        // After the end there is nothing to do.
        #expect(try await resumed.train(on: data).collect().stepCount == 100)
        await expect(.invalidArgument, "batch_size") {
            try await LoRATrainer.resume(from: checkpoint, model: model, options: TrainingOptions(batchSize: 2))
        }
        await expect(.notFound) { try await LoRATrainer.resume(from: directory.url.appending(path: "none"), model: model, options: long) }
    }

    @Test func eventsComeInTheirOrder() async throws {
        let directory = try TemporaryDirectory()
        var options = quick
        options.validationInterval = 3
        options.checkpoints = .init(directory.url, interval: 4)
        let trainer = try await LoRATrainer(loadCoder(), adapter: adapter, options: options)
        var names: [String] = []
        let losses = Recorder<Float>()
        for try await event in try trainer.train(on: TrainingData(facts), validation: TrainingData(Array(facts.prefix(3)))) {
            switch event {
            case .step(let step): names.append("\(step.step)")
            case .validation(let validation):
                names.append("validation \(validation.step)")
                losses.append(validation.loss)
            case .checkpoint(let url):
                names.append("checkpoint")
                #expect(url == directory.url)
                #expect(FileManager.default.fileExists(atPath: url.appending(path: "adapter_model.safetensors").path()))
            case .finished(let summary):
                names.append("finished \(summary.stepCount)")
                #expect(summary.bestValidationLoss == losses.values.min())
            }
        }
        #expect(names == [
            "1", "2", "3", "validation 3", "4", "checkpoint", "5", "6", "validation 6", "7", "8", "validation 8", "checkpoint", "finished 8",
        ])
        // The checkpoint is an adapter too.
        let model = try await loadCoder()
        #expect(try await Adapter(directory: directory.url, for: model).rank == 4)
        #expect(try await Adapter(directory: directory.url.appending(path: "best"), for: model).rank == 4)
    }

    @Test func aCheckpointAtTheEndIsToldOnce() async throws {
        let directory = try TemporaryDirectory()
        for interval in [nil, 3, 8] {
            var options = quick
            options.checkpoints = .init(directory.url, interval: interval)
            let trainer = try await LoRATrainer(loadCoder(), adapter: adapter, options: options)
            var names: [String] = []
            for try await event in try trainer.train(on: TrainingData(facts)) {
                switch event {
                case .step: names.append("step")
                case .checkpoint: names.append("checkpoint")
                case .finished: names.append("finished")
                case .validation: Issue.record("there is no validation data")
                }
            }
            #expect(names.suffix(3) == ["step", "checkpoint", "finished"])
            #expect(names.count { $0 == "checkpoint" } == [nil: 1, 3: 3, 8: 1][interval])
        }
    }

    @Test func trainingCanBeCancelled() async throws {
        let (trainer, data) = (try await LoRATrainer(loadCoder(), adapter: adapter, options: long), try TrainingData(facts))
        let (begun, signal) = AsyncStream.makeStream(of: Void.self)
        let training = Task {
            for try await event in trainer.train(on: data) { if case .step = event { signal.finish() } }
        }
        for await _ in begun {}
        training.cancel()
        await expectCancelled { try await training.value }
        #expect(trainer.stepCount >= 1)
        await expectCancelled {
            try await Task {
                withUnsafeCurrentTask { $0?.cancel() }
                return try await trainer.train(on: data).collect()
            }.value
        }
        #expect(try await trainer.train(on: data).collect().stepCount == 100)
    }

    @Test func aTrainerDoesOneThingAtATimeAndSessionsGoOn() async throws {
        let model = try await loadCoder()
        let (trainer, data) = (try await LoRATrainer(model, adapter: adapter, options: quick), try TrainingData(facts))
        let run = trainer.train(on: data)
        var events = run.makeAsyncIterator()
        guard case .step? = try await events.next() else { Issue.record("no step"); return }
        await expect(.busy) { try await trainer.adapter() }
        await expect(.busy) { try await trainer.train(on: data).collect() }
        await expect(.busy) { try await trainer.save(to: URL(filePath: "/nowhere")) }
        #expect(try await ChatSession(model, options: greedy).respond(to: question).text == answer)
        while let event = try await events.next() { if case .finished = event { break } }
        #expect(try await events.next() == nil)
        await expect(.invalidArgument, "reader") { try await run.collect() }
        _ = try await trainer.adapter()
    }

    @Test func trainingPausesOnASuspendedDevice() async throws {
        let directory = try TemporaryDirectory()
        let device = try ComputeDevice(.cpu)
        // Learning the facts makes what the model knows worse: the best loss is one of the first, before the pause.
        let known = TrainingExample.conversation([.user(question), .assistant(answer)])
        let (data, validation) = (try TrainingData(facts), try TrainingData([known]))
        var options = long
        options.validationInterval = 1
        options.checkpoints = .init(directory.url.appending(path: "checkpoint"))
        let whole = try await LoRATrainer(loadCoder(), adapter: adapter, options: options)
        let end = try await whole.train(on: data, validation: validation).collect()
        let trainer = try await LoRATrainer(loadCoder(ModelOptions(device: device)), adapter: adapter, options: options)
        var (checkpoints, losses, pause, summary) = (0, [Float](), Int.max, TrainingSummary?.none)
        for try await event in trainer.train(on: data, validation: validation) {
            switch event {
            case .step(let step):
                guard step.step == 10 else { continue }
                try device.suspend()
                pause = trainer.stepCount
                Task {
                    await eventually { Gate.shared.waiting == 1 }
                    device.resume()
                }
            case .validation(let validation): losses.append(validation.loss)
            case .checkpoint: checkpoints += 1
            case .finished(let end): summary = end
            }
        }
        #expect(pause < 100 && losses.count == 100 && checkpoints == 1)
        #expect(losses.dropFirst(pause).allSatisfy { $0 > losses.min() ?? .infinity })
        #expect(summary == end && summary?.bestValidationLoss == losses.min())
        #expect(try await weights(of: trainer, in: directory) == weights(of: whole, in: directory))
    }

    @Test func dataIsReadFromJSONLines() async throws {
        let directory = try TemporaryDirectory()
        let file = directory.url.appending(path: "examples.jsonl")
        let lines = [
            #"{"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]}"#,
            #"{"prompt": "C", "completion": "D"}"#, "", #"{"text": "E 🦀"}"#,
        ]
        try Data(lines.joined(separator: "\n").utf8).write(to: file)
        #expect(try await TrainingData(jsonLines: file).count == 3)
        let examples: [TrainingExample] = [
            .conversation([.user("A"), .assistant("B")]), .completion(prompt: "C", completion: "D"), .text("E 🦀"),
        ]
        #expect(try TrainingData(examples).count == 3)
        // The two are the same: a training of one goes on with the other.
        let trainer = try await LoRATrainer(loadCoder(), options: TrainingOptions(epochs: 40, batchSize: 1))
        for try await event in try await trainer.train(on: TrainingData(jsonLines: file)) { if case .step = event { break } }
        try await trainer.train(on: TrainingData(examples)).collect()
        let other = try await LoRATrainer(loadCoder(), options: TrainingOptions(epochs: 40, batchSize: 1))
        for try await event in try await other.train(on: TrainingData(jsonLines: file)) { if case .step = event { break } }
        await expect(.mismatch) { try await other.train(on: TrainingData(Array(examples.dropLast()))).collect() }

        try Data("{\"text\": \"a\"}\n{\"text\"".utf8).write(to: file)
        await expect(.format, "2") { try await TrainingData(jsonLines: file) }
        await expect(.notFound) { try await TrainingData(jsonLines: URL(filePath: "/nowhere.jsonl")) }
        let tool = ToolDefinition(name: "a", description: "", parameters: "{")
        await expect(.format) { try TrainingData([.conversation([.user("a")], tools: [tool])]) }
        await expect(.invalidArgument, "train") { try await quickTrainer(loadCoder()).train(on: TrainingData([])).collect() }
    }

    @Test(arguments: [
        (TrainingOptions(epochs: 0), "epochs"), (TrainingOptions(batchSize: -1), "batchSize"),
        (TrainingOptions(gradientAccumulation: 0), "gradientAccumulation"), (TrainingOptions(learningRate: 2), "learning_rate"),
        (TrainingOptions(warmupSteps: -1), "warmupSteps"), (TrainingOptions(totalSteps: 0), "totalSteps"),
        (TrainingOptions(weightDecay: -1), "weight_decay"), (TrainingOptions(beta1: 1), "beta"), (TrainingOptions(epsilon: 0), "epsilon"),
        (TrainingOptions(gradientClip: 0), "gradientClip"), (TrainingOptions(gradientClip: -1), "grad_clip"),
        (TrainingOptions(maximumLength: 100_000), "max_length"), (TrainingOptions(validationInterval: 0), "validationInterval"),
        (TrainingOptions(patience: 0), "patience"), (TrainingOptions(checkpoints: .init(URL(filePath: "/"), interval: 0)), "interval"),
    ]) func aBadOptionIsNamed(options: TrainingOptions, name: String) async throws {
        let model = try await loadCoder()
        await expect(.invalidArgument, name) { try await LoRATrainer(model, options: options) }
    }

    @Test func aBadAdapterIsNamed() async throws {
        let model = try await loadCoder()
        let bad = [
            (AdapterConfiguration(rank: 0), "rank"), (AdapterConfiguration(alpha: 0), "alpha"), (AdapterConfiguration(dropout: 1), "dropout"),
            (AdapterConfiguration(targets: ["nonesuch"]), "nonesuch"), (AdapterConfiguration(targets: ["q_proj\0"]), "targets"),
        ]
        for (adapter, name) in bad {
            await expect(.invalidArgument, name) { try await LoRATrainer(model, adapter: adapter) }
        }
    }

    @Test func optionsChangeWhatIsLearnt() async throws {
        let directory = try TemporaryDirectory()
        let (model, data) = (try await loadCoder(), try TrainingData(Array(facts.prefix(4))))
        func weights(_ adapter: AdapterConfiguration, _ set: (inout TrainingOptions) -> Void = { _ in }) async throws -> Data {
            var options = TrainingOptions(batchSize: 1, learningRate: 3e-3)
            set(&options)
            let trainer = try await LoRATrainer(model, adapter: adapter, options: options)
            try await trainer.train(on: data).collect()
            return try await self.weights(of: trainer, in: directory)
        }
        let base = try await weights(adapter)
        #expect(try await weights(adapter) == base)
        #expect(try await weights(adapter) { $0.gradientCheckpointing = false } == base)
        let different: [(inout TrainingOptions) -> Void] = [
            { $0.epochs = 2 }, { $0.batchSize = 2 }, { $0.gradientAccumulation = 2 }, { $0.learningRate = 1e-3 }, { $0.schedule = .linear },
            { $0.schedule = .cosine }, { $0.warmupSteps = 2 }, { ($0.warmupSteps, $0.warmsUpFromZero) = (2, true) }, { $0.totalSteps = 2 },
            { $0.weightDecay = 1 }, { $0.beta1 = 0.5 }, { $0.beta2 = 0.5 }, { $0.epsilon = 1 }, { $0.gradientClip = 1e-9 },
            { $0.gradientClip = nil }, { $0.maximumLength = 44 }, { $0.masksPrompts = false }, { $0.seed = 5 },
            { ($0.gradientAccumulation, $0.weighting) = (2, .tokens) },
        ]
        var seen: Set<Data> = [base]
        for (index, set) in different.enumerated() {
            #expect(seen.insert(try await weights(adapter, set)).inserted, "\(index)")
        }
        for set: (inout AdapterConfiguration) -> Void in [
            { $0.rank = 2 }, { $0.alpha = 1 }, { $0.dropout = 0.5 }, { $0.isRankStabilized = true }, { $0.targets = ["q_proj"] }, { $0.seed = 9 },
        ] {
            var other = adapter
            set(&other)
            #expect(seen.insert(try await weights(other)).inserted)
        }
        let trainer = try await LoRATrainer(model, adapter: adapter, options: quick)
        try await trainer.train(on: data).collect()
        let initial = AdapterConfiguration(rank: 99, initial: try await trainer.adapter())
        #expect(try await LoRATrainer(model, adapter: initial).adapter().rank == 4)
        #expect(seen.insert(try await weights(initial)).inserted)
    }

    @Test func trainingEndsWhereNothingGetsBetter() async throws {
        let options = TrainingOptions(epochs: 20, batchSize: 1, learningRate: 3e-2, validationInterval: 1, patience: 2)
        let trainer = try await LoRATrainer(loadCoder(), adapter: adapter, options: options)
        var validations: [TrainingValidation] = []
        for try await event in try trainer.train(on: TrainingData([facts[0]]), validation: TrainingData([.text("fn main() {}")])) {
            if case .validation(let validation) = event { validations.append(validation) }
        }
        #expect(trainer.stepCount < 20 && trainer.stepCount == validations.count)
        #expect(validations.suffix(2).allSatisfy { !$0.isBest })
    }

    @Test func memoryIsEstimated() async throws {
        let model = try await loadCoder()
        let small = try await LoRATrainer.estimatedMemoryBytes(for: model, adapter: AdapterConfiguration(rank: 1))
        let large = try await LoRATrainer.estimatedMemoryBytes(for: model, adapter: AdapterConfiguration(rank: 64))
        #expect(small > 0 && large > small)
    }

    @Test func trainersAreLetGo() async throws {
        await eventually { MetalCandleRuntime.liveObjects == 0 }
        do {
            let trainer = try await quickTrainer(loadCoder())
            for try await event in try trainer.train(on: TrainingData(facts)) { if case .step = event { break } }
            _ = try await trainer.adapter()
        }
        await eventually { MetalCandleRuntime.liveObjects == 0 }
        do {
            var events: TrainingRun.Iterator? = try await quickTrainer(loadCoder()).train(on: TrainingData(facts)).makeAsyncIterator()
            #expect(try await events?.next() != nil)
            events = nil
        }
        await eventually { MetalCandleRuntime.liveObjects == 0 }
    }

    private func quickTrainer(_ model: LanguageModel) async throws -> LoRATrainer {
        try await LoRATrainer(model, adapter: adapter, options: quick)
    }

    /// The file of the adapter: equal bytes are equal weights.
    private func weights(of trainer: LoRATrainer, in directory: TemporaryDirectory) async throws -> Data {
        let url = directory.url.appending(path: UUID().uuidString)
        try await trainer.adapter().save(to: url)
        return try Data(contentsOf: url.appending(path: "adapter_model.safetensors"))
    }
}}
