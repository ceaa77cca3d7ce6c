import Foundation
import MetalCandle
import Testing

extension MetalCandleTests { @Suite struct Cancellation {
    /// A question whose answer is long enough to be left in the middle.
    private let long = ResponseOptions(maximumTokens: 400, temperature: 1, logitBias: [4095: -.infinity, 4093: -.infinity], seed: 1)

    @Test func leavingTheLoopKeepsWhatWasRead() async throws {
        let session = ChatSession(try await loadCoder())
        var read = ""
        for try await event in session.streamResponse(to: question, options: long) {
            if case .text(let piece) = event { read += piece }
            if read.count > 20 { break }
        }
        #expect(!session.isResponding)
        #expect(session.history == [.user(question), .assistant(read)])
        // At once, while the token ahead may still be in the making.
        try session.reset()
        #expect(try await session.respond(to: question, options: greedy).text == answer)
    }

    @Test func aCancelledTaskGetsACancellationError() async throws {
        let session = ChatSession(try await loadCoder())
        let (begun, signal) = AsyncStream.makeStream(of: Void.self)
        let reading = Task {
            var count = 0
            for try await event in session.streamResponse(to: question, options: long) {
                if case .text = event { count += 1 }
                if count == 3 { signal.finish() }
            }
            return count
        }
        for await _ in begun {}
        reading.cancel()
        await expectCancelled { try await reading.value }
        #expect(!session.isResponding)
        #expect(session.history.count == 2 && !session.history[1].content.isEmpty)
        try session.reset()
        #expect(try await session.respond(to: question, options: greedy).text == answer)
    }

    @Test func aCancelledReaderGetsNoMoreText() async throws {
        let model = try await loadCoder()
        let session = ChatSession(model)
        let read = Recorder<GenerationEvent>()
        await expectCancelled {
            try await Task {
                var events = session.streamResponse(to: question, options: long).makeAsyncIterator()
                if let event = try await events.next() { read.append(event) }
                // Behind this the next token is ready, and would be text.
                _ = try await model.complete("fn", options: ResponseOptions(maximumTokens: 1))
                withUnsafeCurrentTask { $0?.cancel() }
                if let event = try await events.next() { read.append(event) }
            }.value
        }
        #expect(read.values.count == 1)
        // The native session was in the middle of its answer.
        try session.reset()
        #expect(try await session.respond(to: question, options: greedy).text == answer)
    }

    @Test func aCancelledRespondLeavesNoTrace() async throws {
        let session = ChatSession(try await loadCoder())
        var endless = long
        endless.maximumTokens = nil
        for _ in 0..<5 {
            let ended = Recorder<Bool>()
            let responding = Task { [endless] in
                defer { ended.append(true) }
                return try await session.respond(to: question, options: endless)
            }
            await eventually { session.isResponding || !ended.values.isEmpty }
            responding.cancel()
            await expectCancelled { try await responding.value }
            #expect(session.history.isEmpty && !session.isResponding)
        }
        #expect(try await session.respond(to: question, options: greedy).text == answer)
        #expect(session.history.count == 2)
    }

    @Test func aTaskThatIsCancelledBeforeItStartsDoesNothing() async throws {
        let session = ChatSession(try await loadCoder())
        await expectCancelled {
            try await Task {
                withUnsafeCurrentTask { $0?.cancel() }
                return try await session.respond(to: question)
            }.value
        }
        await expectCancelled {
            try await Task {
                withUnsafeCurrentTask { $0?.cancel() }
                var text = ""
                for try await piece in session.streamResponse(to: question).snapshots { text = piece }
                return text
            }.value
        }
        #expect(session.history.isEmpty && !session.isResponding)
    }

    @Test func aStreamThatNobodyReadsDoesNothing() async throws {
        let session = ChatSession(try await loadCoder())
        _ = session.streamResponse(to: question)
        do {
            let stream = session.streamResponse(to: question)
            _ = stream.makeAsyncIterator()
        }
        #expect(session.history.isEmpty && !session.isResponding)
        #expect(try await session.respond(to: question, options: greedy).text == answer)
    }

    @Test func theNativeLoopEndsWithinAToken() async throws {
        let model = try await loadCoder()
        let session = ChatSession(model)
        for try await event in session.streamResponse(to: question, options: long) { if case .text = event { break } }
        // What is given to the model's thread now runs behind at most one token; a whole answer of 400 tokens would take its time.
        let clock = ContinuousClock()
        let next = try await clock.measure { _ = try await ChatSession(model).respond(to: question, options: greedy) }
        let whole = try await clock.measure { _ = try await ChatSession(model).respond(to: question, options: long) }
        #expect(next < whole / 2)
    }

    @Test func embeddingCanBeCancelled() async throws {
        let model = try await EmbeddingModel.load(from: tinyEmbed)
        let texts = (0..<5000).map { "a text with the number \($0), which is not the shortest of them" }
        let embedding = Task { try await model.embed(texts) }
        embedding.cancel()
        await expectCancelled { try await embedding.value }
        #expect(try await model.embed("still there").count == 192)
    }
}}
