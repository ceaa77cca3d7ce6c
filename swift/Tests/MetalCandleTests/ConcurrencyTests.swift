import Foundation
import MetalCandle
import Testing

extension MetalCandleTests { @Suite struct Concurrency {
    @Test func aSecondCallIsBusy() async throws {
        let session = ChatSession(try await loadCoder(), options: greedy)
        var events = session.streamResponse(to: question).makeAsyncIterator()
        var text = ""
        if case .text(let piece) = try await events.next() { text += piece }
        #expect(session.isResponding)
        await expect(.busy) { try await session.respond(to: question) }
        await expect(.busy) { try await session.streamResponse(to: question).collect() }
        await expect(.busy) { try session.reset() }
        while case .text(let piece)? = try await events.next() { text += piece }
        #expect(text == answer)
        #expect(session.history.count == 2)
        #expect(try await session.respond(to: question).completion.finishReason == .endOfText)
    }

    @Test func twoSessionsOfOneModelTakeTurns() async throws {
        let model = try await loadCoder()
        var first = ChatSession(model, options: greedy).streamResponse(to: question).makeAsyncIterator()
        var second = ChatSession(model, options: greedy).streamResponse(to: question).makeAsyncIterator()
        var texts = ["", ""]
        while true {
            guard case .text(let a)? = try await first.next(), case .text(let b)? = try await second.next() else { break }
            texts[0] += a
            texts[1] += b
        }
        #expect(texts == [answer, answer])
    }

    @Test func fiftyTasksShareAModel() async throws {
        let model = try await loadCoder()
        let texts = try await withThrowingTaskGroup(of: String.self) { group in
            for _ in 0..<50 {
                group.addTask { try await ChatSession(model, options: greedy).respond(to: question).text }
            }
            return try await group.reduce(into: []) { $0.append($1) }
        }
        #expect(texts == Array(repeating: answer, count: 50))
    }

    @Test @MainActor func theMainActorCanRead() async throws {
        let session = ChatSession(try await loadCoder(), options: greedy)
        var text = ""
        for try await event in session.streamResponse(to: question) {
            if case .text(let piece) = event { text += piece }
        }
        #expect(text == answer)
    }

    @Test func everythingIsLetGo() async throws {
        await eventually { MetalCandleRuntime.liveObjects == 0 }
        do {
            let model = try await loadCoder()
            #expect(MetalCandleRuntime.liveObjects > 0)
            let session = ChatSession(model)
            _ = try await session.respond(to: question, options: greedy)
            for try await _ in session.streamResponse(to: question) { break }
            _ = session.streamResponse(to: question)
            await expect(.invalidArgument) { try await session.respond(to: question, options: ResponseOptions(topP: 5)) }
            _ = try await EmbeddingModel.load(from: tinyEmbed).embed(["a", "b"])
            _ = try await model.tokenCount("a")
        }
        await eventually { MetalCandleRuntime.liveObjects == 0 }
    }

    @Test func everythingCanBeDroppedInTheMiddleOfAnAnswer() async throws {
        await eventually { MetalCandleRuntime.liveObjects == 0 }
        do {
            var events: ResponseStream.Iterator?
            do {
                let session = ChatSession(try await loadCoder())
                events = session.streamResponse(to: question).makeAsyncIterator()
            }
            // The iterator alone keeps what it needs.
            #expect(try await events?.next() != nil)
            events = nil
        }
        await eventually { MetalCandleRuntime.liveObjects == 0 }

        let (begun, signal) = AsyncStream.makeStream(of: Void.self)
        let responding = Task {
            let stream = ChatSession(try await loadCoder()).streamResponse(to: question)
            for try await _ in stream { signal.finish() }
        }
        for await _ in begun {}
        responding.cancel()
        _ = await responding.result
        await eventually { MetalCandleRuntime.liveObjects == 0 }
    }

    @Test func unloadingFreesSessionsThatAreKept() async throws {
        await eventually { MetalCandleRuntime.liveObjects == 0 }
        let model = try await loadCoder()
        let session = ChatSession(model)
        for _ in 0..<2 { _ = try await session.respond(to: question, options: greedy) }
        // The model and one native session, which keeps what it evaluated from turn to turn.
        await eventually { MetalCandleRuntime.liveObjects == 2 }
        model.unload()
        await eventually { MetalCandleRuntime.liveObjects == 0 }
        #expect(session.history.count == 4)
    }
}}
