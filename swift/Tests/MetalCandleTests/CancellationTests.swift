import CMetalCandle
import Foundation
import Testing

@testable import MetalCandle

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
        let sessions = Recorder<Handle>()
        let stream = ResponseStream(Turn(model: model.native) { [native = model.native, long] cancel in
            let model = try native.loaded()
            let session = try Handle(free: mc_session_free) { mc_session_new(model.pointer, 0, $0, $1) }
            let options = try long.native(cancel)
            try call { error in question.withBytes { mc_session_set_prompt(session.pointer, $0, $1, cancel.pointer, error) } }
            try call { mc_session_begin(session.pointer, options.pointer, $0) }
            sessions.append(session)
            return session
        })
        let prompt = try await model.tokenCount(question)
        for try await event in stream { if case .text = event { break } }
        let session = try #require(sessions.values.first)
        // Behind the token that was ahead. The first text is one of the first tokens.
        let position = try await model.native.queue.run { mc_session_position(session.pointer) }
        #expect((prompt..<prompt + 10).contains(position))
        _ = try await model.complete("fn", options: ResponseOptions(maximumTokens: 8))
        #expect(mc_session_position(session.pointer) == position)
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
