import CMetalCandle
import Foundation
import Synchronization

/// A loaded model, the queue that its calls run on, and the native sessions on it: what ``LanguageModel`` and ``EmbeddingModel`` share.
final class NativeModel: Sendable {
    let queue: NativeQueue
    let info: ModelInfo
    private let contents: Mutex<Contents>

    /// What unloading lets go. Sessions are here and not with their owners, since each of them holds the model.
    private struct Contents {
        var model: Handle?
        var sessions: [ObjectIdentifier: Handle] = [:]
    }

    init(_ model: Handle, on queue: NativeQueue) {
        self.queue = queue
        info = ModelInfo(model.pointer)
        contents = Mutex(Contents(model: model))
    }

    /// - Throws: ``MetalCandleError`` with `.invalidArgument` after ``unload()``.
    func loaded() throws -> Handle {
        guard let model = contents.withLock({ $0.model }) else {
            throw MetalCandleError(.invalidArgument, "model: expected a loaded one, found one that was unloaded")
        }
        return model
    }

    var isLoaded: Bool { contents.withLock { $0.model != nil } }

    func unload() {
        let contents = self.contents.withLock { contents in
            defer { contents = Contents() }
            return contents
        }
        // Freeing a session waits for nothing, but may give back gigabytes: not on the caller's thread.
        queue.later { _ = contents }
    }

    /// The session of an owner, made when it is first asked for. On the queue only.
    func session(of owner: ObjectIdentifier) throws -> Handle {
        let model = try loaded()
        if let session = contents.withLock({ $0.sessions[owner] }) { return session }
        let session = try Handle(free: mc_session_free) { mc_session_new(model.pointer, 0, $0, $1) }
        adopt(session, for: owner)
        return session
    }

    /// The session of an owner, if it has one. On the queue only.
    func existingSession(of owner: ObjectIdentifier) -> Handle? {
        contents.withLock { $0.sessions[owner] }
    }

    /// Gives an owner a session that was made for it. On the queue only.
    func adopt(_ session: Handle, for owner: ObjectIdentifier) {
        contents.withLock { if $0.model != nil { $0.sessions[owner] = session } }
    }

    func forgetSession(of owner: ObjectIdentifier) {
        let session = contents.withLock { $0.sessions.removeValue(forKey: owner) }
        if let session { queue.later { _ = session } }
    }

    /// A call that a cancelled task stops.
    func run<Value: Sendable>(_ work: @escaping @Sendable (OpaquePointer, CancelFlag) throws -> Value) async throws -> Value {
        let cancel = CancelFlag()
        return try await cancel.guarding {
            try await queue.run { try work(self.loaded().pointer, cancel) }
        }
    }
}

extension NativeModel {
    /// Where a model comes from.
    enum Source: Sendable {
        case directory(URL)
        case hub(HubModel)
    }

    /// - Parameter start: the part of the progress that was made before.
    static func load(
        _ source: Source, _ options: ModelOptions, start: Double, progress: (@Sendable (LoadProgress) -> Void)?
    ) async throws -> NativeModel {
        _ = MetalCandleRuntime.background
        let queue = NativeQueue("model")
        let cancel = CancelFlag()
        let reporter = LoadReporter(start: start, report: progress)
        return try await cancel.guarding {
            let model = try await queue.run {
                let native = try options.native()
                mc_model_options_set_cancel(native.pointer, cancel.pointer)
                mc_model_options_set_progress(native.pointer, reportLoad, Unmanaged.passUnretained(reporter).toOpaque())
                return try withExtendedLifetime(reporter) {
                    switch source {
                    case .directory(let url):
                        let path = try url.nativePath("directory")
                        return try Handle(free: mc_model_free) { mc_model_load(path, native.pointer, $0, $1) }
                    case .hub(let hub):
                        try hub.set(native.pointer)
                        return try Handle(free: mc_model_free) { mc_model_load_hub(hub.repository, native.pointer, $0, $1) }
                    }
                }
            }
            let loaded = NativeModel(model, on: queue)
            reporter.finish()
            return loaded
        }
    }

    /// The same, after an app's own downloader brought the files.
    static func load(
        _ id: String, revision: String, using downloader: some ModelDownloader, _ options: ModelOptions,
        progress: (@Sendable (LoadProgress) -> Void)?
    ) async throws -> NativeModel {
        let reporter = LoadReporter(start: LoadReporter.downloadShare, report: progress)
        let directory = try await downloader.download(id, revision: revision) { reporter.report(.downloading, $0) }
        try Task.checkCancellation()
        return try await load(.directory(directory), options, start: LoadReporter.downloadShare, progress: progress)
    }
}

/// Makes one rising fraction of the stages' own counts.
final class LoadReporter: Sendable {
    /// What downloading counts of the whole; of the rest, reading counts nine tenths.
    static let downloadShare = 0.8

    private let start: Double
    private let send: (@Sendable (LoadProgress) -> Void)?
    private let last: Mutex<LoadProgress>

    init(start: Double, report: (@Sendable (LoadProgress) -> Void)?) {
        self.start = start
        send = report
        last = Mutex(LoadProgress(phase: .downloading, fraction: 0))
    }

    /// - Parameter done: of the phase, 0 to 1.
    func report(_ phase: LoadProgress.Phase, _ done: Double) {
        let compile = start + (1 - start) * 0.9
        let span = switch phase {
        case .downloading: 0...start
        case .reading: start...compile
        case .compiling: compile...1
        }
        let done = min(max(done, 0), 1)
        send(LoadProgress(phase: phase, fraction: span.lowerBound + done * (span.upperBound - span.lowerBound)))
    }

    func finish() {
        send(LoadProgress(phase: .compiling, fraction: 1))
    }

    private func send(_ progress: LoadProgress) {
        let isNew = last.withLock { last in
            guard progress.fraction > last.fraction || progress.phase != last.phase && progress.fraction == last.fraction else {
                return false
            }
            last = progress
            return true
        }
        if isNew { send?(progress) }
    }
}

private let reportLoad: mc_progress_fn = { reporter, event in
    let phase: LoadProgress.Phase = switch event.pointee.stage {
    case .MC_STAGE_DOWNLOAD: .downloading
    case .MC_STAGE_COMPILE: .compiling
    default: .reading
    }
    let (done, total) = (Double(event.pointee.done), Double(event.pointee.total))
    if let reporter, total > 0 {
        Unmanaged<LoadReporter>.fromOpaque(reporter).takeUnretainedValue().report(phase, done / total)
    }
    return MC_CONTINUE
}
