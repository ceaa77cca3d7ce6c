import CMetalCandle
import Foundation
import Testing

@testable import MetalCandle

extension MetalCandleTests { @Suite struct Runtime {
    @Test func theVersionIsThatOfTheManifest() throws {
        let manifest = try String(contentsOf: root.appending(path: "Cargo.toml"), encoding: .utf8)
        #expect(manifest.contains("\nversion = \"\(MetalCandleRuntime.version)\"\n"))
    }

    @Test func memoryCanBeTrimmed() async throws {
        let model = try await loadCoder()
        try MetalCandleRuntime.trimMemory()
        try MetalCandleRuntime.trimMemory(keepingBytes: 1 << 20)
        try MetalCandleRuntime.setThreads(3)
        #expect(MetalCandleRuntime.threads == 3)
        await expect(.invalidArgument, "count") { try MetalCandleRuntime.setThreads(0) }
        try MetalCandleRuntime.setThreads(nil)
        #expect(try await ChatSession(model, options: greedy).respond(to: question).text == answer)
    }

    @Test func theLogTellsOfAnIgnoredCall() throws {
        let recorder = Recorder<MetalCandleRuntime.LogMessage>()
        let chat = Handle(mc_chat_new(), free: mc_chat_free)
        let wrong = { mc_generate_options_set_top_k(chat.pointer, 1) }
        try MetalCandleRuntime.log(.warning) { recorder.append($0) }
        wrong()
        #expect(recorder.values.count == 1)
        #expect(recorder.values.first?.level == .warning)
        #expect(recorder.values.first?.target.hasPrefix("metal_candle") == true)
        #expect(recorder.values.first?.text.contains("ignored call: ") == true)
        try MetalCandleRuntime.log(.error) { recorder.append($0) }
        wrong()
        try MetalCandleRuntime.log(to: nil)
        wrong()
        #expect(recorder.values.count == 1)
    }

    @Test func theLogsReceiverIsLetGo() throws {
        final class Receiver: Sendable {}
        weak var weakly: Receiver?
        do {
            let receiver = Receiver()
            weakly = receiver
            try MetalCandleRuntime.log { _ in _ = receiver }
        }
        #expect(weakly != nil)
        try MetalCandleRuntime.log(to: nil)
        #expect(weakly == nil)
    }

    @Test func anAnswerPausesOnASuspendedDeviceAndGoesOnToTheSameText() async throws {
        let device = try ComputeDevice(.cpu)
        let session = ChatSession(try await loadCoder(ModelOptions(device: device)), options: greedy)
        let resumed = Recorder<Bool>()
        var (text, count) = ("", 0)
        for try await event in session.streamResponse(to: question) {
            guard case .text(let piece) = event else { continue }
            text += piece
            count += 1
            if count == 3 {
                try device.suspend()
                Task {
                    await eventually { Gate.shared.waiting == 1 }
                    resumed.append(true)
                    device.resume()
                }
            }
            // One token may have been ahead of the suspension.
            if count == 5 { #expect(resumed.values == [true]) }
        }
        #expect(count > 5 && text == answer)
        #expect(session.history == [.user(question), .assistant(answer)])
    }

    @Test func workIsOneTokenAheadOfItsReader() async throws {
        let device = try ComputeDevice(.cpu)
        let model = try await loadCoder(ModelOptions(device: device))
        var events = ChatSession(model, options: greedy).streamResponse(to: question).makeAsyncIterator()
        _ = try await events.next()
        _ = try await model.complete("fn", options: ResponseOptions(maximumTokens: 1))  // the token ahead is made before this
        try device.suspend()
        let read = Recorder<Bool>()
        let resuming = Task {
            await eventually { read.values.count == 1 && Gate.shared.waiting == 1 }
            device.resume()
        }
        _ = try await events.next()
        read.append(true)
        await resuming.value
        _ = try await events.next()
    }

    @Test func anOpeningAndACancellationBeforeTheWaitAreNotMissed() async throws {
        let gate = Gate()
        let before = gate.openings
        gate.open()
        let ended = Recorder<Bool>()
        let opened = Task { try await gate.wait(after: before); ended.append(true) }
        await eventually { ended.values == [true] }
        opened.cancel()

        let cancelled = Task {
            withUnsafeCurrentTask { $0?.cancel() }
            do { try await gate.wait(after: gate.openings) } catch { ended.append(error is CancellationError) }
        }
        await eventually { ended.values == [true, true] }
        gate.open()
        await cancelled.value
        #expect(gate.waiting == 0)
    }

    @Test func callsThatBeginOnASuspendedDeviceWait() async throws {
        let device = try ComputeDevice(.cpu)
        let model = try await loadCoder(ModelOptions(device: device))
        let embedder = try await EmbeddingModel.load(from: tinyEmbed, options: ModelOptions(device: device))
        let vector = try await embedder.embed("a")
        try device.suspend()
        async let response = ChatSession(model, options: greedy).respond(to: question)
        async let embedded = embedder.embed("a")
        async let loaded = loadCoder(ModelOptions(device: device))
        await eventually { Gate.shared.waiting == 3 }
        device.resume()
        #expect(try await response.text == answer)
        #expect(try await embedded == vector)
        #expect(try await loaded.isLoaded)
    }

    @Test func callsFailOnASuspendedDeviceIfTheAppWantsIt() async throws {
        let device = try ComputeDevice(.cpu)
        let session = ChatSession(try await loadCoder(ModelOptions(device: device)), options: greedy)
        MetalCandleRuntime.backgroundPolicy = .fail
        defer { MetalCandleRuntime.backgroundPolicy = .pause }
        try device.suspend()
        await expect(.suspended) { try await session.respond(to: question) }
        #expect(session.history.isEmpty && !session.isResponding)
        device.resume()
        #expect(try await session.respond(to: question).text == answer)
    }

    @Test func aCallThatWaitsCanBeCancelled() async throws {
        let device = try ComputeDevice(.cpu)
        let session = ChatSession(try await loadCoder(ModelOptions(device: device)), options: greedy)
        try device.suspend()
        let responding = Task { try await session.respond(to: question) }
        await eventually { Gate.shared.waiting == 1 }
        responding.cancel()
        await expectCancelled { try await responding.value }
        #expect(Gate.shared.waiting == 0)
        device.resume()
        #expect(try await session.respond(to: question).text == answer)
    }

    @Test func theAppsNotificationsSuspendAndResume() async throws {
        let device = try ComputeDevice(.cpu)
        let session = ChatSession(try await loadCoder(ModelOptions(device: device)), options: greedy)
        let observer = BackgroundObserver(suspend: { try device.suspend() }, resume: { device.resume() })
        defer { withExtendedLifetime(observer) {} }
        let post = { (name: Notification.Name) in NotificationCenter.default.post(name: name, object: nil) }

        post(BackgroundObserver.didEnterBackground)
        let responding = Task { try await session.respond(to: question).text }
        await eventually { Gate.shared.waiting == 1 }
        post(BackgroundObserver.willEnterForeground)
        #expect(try await responding.value == answer)

        MetalCandleRuntime.backgroundPolicy = .allowGPU
        defer { MetalCandleRuntime.backgroundPolicy = .pause }
        post(BackgroundObserver.didEnterBackground)
        #expect(try await session.respond(to: question).completion.finishReason == .endOfText)
    }

    @Test func withoutAnAppleGPUThereIsNothingToSuspend() async throws {
        guard ComputeDevice.count(of: .metal) == 0 else { return }
        try MetalCandleRuntime.suspendGPU()
        #expect(try await ChatSession(loadCoder(), options: greedy).respond(to: question).text == answer)
        try MetalCandleRuntime.resumeGPU()
    }

    @Test func anErrorSaysWhatItIs() async throws {
        do {
            _ = try await LanguageModel.load(from: URL(filePath: "/nowhere"))
            Issue.record("nothing was thrown")
        } catch let error as MetalCandleError {
            #expect(error.description.hasPrefix("MC_ERROR_NOT_FOUND: "))
            #expect(error.localizedDescription == error.message)
            #expect(error.details.hasPrefix(error.message))
            #expect(!error.message.contains("\n"))
        }
        #expect(MetalCandleError.Code(rawValue: 77_777).description == "MC_STATUS_UNKNOWN")
        #expect(MetalCandleError.Code(rawValue: 27) == .busy)
    }
}}
