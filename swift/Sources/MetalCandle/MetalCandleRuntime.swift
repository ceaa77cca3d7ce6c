import CMetalCandle
import Foundation
import Synchronization

/// The library itself: version, memory, the log, and what becomes of the GPU while the app is in the background.
public enum MetalCandleRuntime {
    /// What happens to work on the GPU when an iOS app goes to the background, where the system forbids it.
    public enum BackgroundPolicy: Sendable, Hashable {
        /// Calls wait, in the middle of an answer too, and go on in the foreground as if nothing had happened.
        case pause
        /// Calls end with ``MetalCandleError`` and its code `.suspended`.
        case fail
        /// The app's notifications are ignored, for an app with leave to use the GPU in the background. Calls that meet a device
        /// that was suspended by hand wait.
        case allowGPU
    }

    /// How important a log message is; a level contains those before it.
    public enum LogLevel: Sendable, Hashable, CaseIterable {
        /// Something failed that no error could report.
        case error
        /// A call was ignored, or something looks wrong.
        case warning
        /// Milestones, such as a loaded model.
        case info
        /// Decisions that explain a result.
        case debug
        /// Everything, at a cost in speed.
        case trace
    }

    /// One message of the log.
    public struct LogMessage: Sendable, Hashable {
        /// How important it is.
        public let level: LogLevel
        /// The part of the library, such as `metal_candle::load`.
        public let target: String
        /// The message.
        public let text: String
    }

    /// The version of the library that is running.
    public static var version: String { String(cString: mc_version_string()) }

    /// How many native objects exist in the process; 0 when everything was let go. For leak tests.
    public static var liveObjects: Int { mc_live_objects() }

    /// How many threads of the processor compute; 0 if the system gives none.
    public static var threads: Int { Int(mc_threads()) }

    /// Computes with so many threads of the processor from now on, with the same results.
    ///
    /// - Parameter count: 1 to 1024; nil = as many as there are processors.
    /// - Throws: ``MetalCandleError`` with `.outOfMemory` if the system gives no so many: those there were stay in use.
    public static func setThreads(_ count: Int?) throws {
        if let count { try requirePositive(count, "count") }
        try call { mc_set_threads(UInt32(clamping: count ?? 0), $0) }
    }

    /// Gives memory that is kept for reuse back to the system.
    ///
    /// - Parameter keepingBytes: how much may stay.
    public static func trimMemory(keepingBytes: UInt64 = 0) throws {
        try call { mc_trim_memory(keepingBytes, $0) }
    }

    /// What happens to work on the GPU in the background; ``BackgroundPolicy/pause`` unless it is set.
    public static var backgroundPolicy: BackgroundPolicy {
        get { policy.withLock { $0 } }
        set { policy.withLock { $0 = newValue } }
    }

    /// Stops work on the Apple GPU and waits until it is idle, as ``ComputeDevice/suspend(timeout:)``. Without such a GPU it does
    /// nothing. With ``backgroundPolicy`` this is called by itself when the app goes to the background.
    public static func suspendGPU(timeout: Duration = .seconds(2)) throws {
        try gpu()?.suspend(timeout: timeout)
    }

    /// Lets work on the Apple GPU run again.
    public static func resumeGPU() throws {
        try gpu()?.resume()
    }

    /// Sends the library's log to `receive`, on whatever thread logs, in place of where it went before. Without one nothing is logged.
    ///
    /// - Parameters:
    ///   - level: the most detailed level that is delivered.
    ///   - receive: gets the messages; nil = nobody.
    /// - Throws: ``MetalCandleError`` with `.busy` if called from within `receive`.
    public static func log(_ level: LogLevel = .info, to receive: (@Sendable (LogMessage) -> Void)?) throws {
        guard let receive else { return try call { mc_log_set(nil, nil, nil, .MC_LOG_OFF, $0) } }
        let receiver = Unmanaged.passRetained(LogReceiver(receive))
        do {
            try call { mc_log_set(deliverLog, receiver.toOpaque(), releaseLogReceiver, level.native, $0) }
        } catch {
            receiver.release()  // on failure it stays ours
            throw error
        }
    }

    private static let policy = Mutex(BackgroundPolicy.pause)

    private static func gpu() throws -> ComputeDevice? {
        ComputeDevice.count(of: .metal) == 0 ? nil : try ComputeDevice(.metal)
    }

    /// Follows the app's notifications from the first loaded model on.
    static let background = BackgroundObserver(suspend: { try suspendGPU() }, resume: { try resumeGPU() })
}

/// Closes the gate when the app leaves the foreground. UIKit posts these names; taking them as text spares a dependency on UIKit.
final class BackgroundObserver: Sendable {
    static let didEnterBackground = Notification.Name("UIApplicationDidEnterBackgroundNotification")
    static let willEnterForeground = Notification.Name("UIApplicationWillEnterForegroundNotification")

    private let tokens: [NotificationToken]

    /// The notification is handled on the thread that posts it: when its handlers return, the system takes the GPU away. An error is
    /// for nobody: work that goes on fails by itself, with an error of the device.
    init(suspend: @escaping @Sendable () throws -> Void, resume: @escaping @Sendable () throws -> Void) {
        tokens = [
            NotificationToken(Self.didEnterBackground) {
                if MetalCandleRuntime.backgroundPolicy != .allowGPU { try? suspend() }
            },
            NotificationToken(Self.willEnterForeground) { try? resume() },
        ]
    }
}

/// Where calls wait that met a suspended device.
final class Gate: Sendable {
    static let shared = Gate()

    private struct State {
        var openings = 0
        var waiting: [Int: CheckedContinuation<Void, Never>] = [:]
        var tickets = 0
    }

    private let state = Mutex(State())

    /// How often it was opened. Read before a call that may meet a closed gate, so that an opening in between is not missed.
    var openings: Int { state.withLock { $0.openings } }

    /// How many calls wait.
    var waiting: Int { state.withLock { $0.waiting.count } }

    func open() {
        let waiting = state.withLock { state in
            state.openings += 1
            defer { state.waiting = [:] }
            return state.waiting.values
        }
        for continuation in waiting { continuation.resume() }
    }

    /// Waits until it was opened more than `openings` times, or the task is cancelled.
    func wait(after openings: Int) async throws {
        let ticket = state.withLock { state in
            state.tickets += 1
            return state.tickets
        }
        await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                let wait = state.withLock { state in
                    // A cancellation before this found nobody to wake.
                    guard state.openings == openings, !Task.isCancelled else { return false }
                    state.waiting[ticket] = continuation
                    return true
                }
                if !wait { continuation.resume() }
            }
        } onCancel: {
            state.withLock { $0.waiting.removeValue(forKey: ticket) }?.resume()
        }
        try Task.checkCancellation()
    }
}

private final class LogReceiver: Sendable {
    let receive: @Sendable (MetalCandleRuntime.LogMessage) -> Void

    init(_ receive: @escaping @Sendable (MetalCandleRuntime.LogMessage) -> Void) { self.receive = receive }
}

private let deliverLog: mc_log_fn = { receiver, level, target, message, length in
    guard let receiver, let level = MetalCandleRuntime.LogLevel.allCases.first(where: { $0.native == level }) else { return }
    Unmanaged<LogReceiver>.fromOpaque(receiver).takeUnretainedValue().receive(
        .init(level: level, target: String(cString: target), text: String(bytes: message, count: length)))
}

private let releaseLogReceiver: mc_destroy_fn = { receiver in
    receiver.map { Unmanaged<LogReceiver>.fromOpaque($0).release() }
}

extension MetalCandleRuntime.LogLevel {
    var native: mc_log_level {
        switch self {
        case .error: .MC_LOG_ERROR
        case .warning: .MC_LOG_WARN
        case .info: .MC_LOG_INFO
        case .debug: .MC_LOG_DEBUG
        case .trace: .MC_LOG_TRACE
        }
    }
}
