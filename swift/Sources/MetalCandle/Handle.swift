import CMetalCandle
import Dispatch
import Foundation

// The one file of `@unchecked Sendable`. What it rests on is the C interface's contract: a handle belongs to no thread, `_free` may
// run on any, and immutable handles may be used by many threads at a time. Mutable ones (sessions, trainers) are used on their
// model's queue alone. NotificationCenter says of its tokens that any thread may hand them back.

/// One reference to an object of the library, dropped with this.
final class Handle: @unchecked Sendable {
    let pointer: OpaquePointer
    private let free: (OpaquePointer?) -> Void

    /// - Parameter free: the `_free` of the type.
    init(_ pointer: OpaquePointer, free: @escaping (OpaquePointer?) -> Void) {
        self.pointer = pointer
        self.free = free
    }

    /// What a call hands over in its out parameter.
    convenience init(
        free: @escaping (OpaquePointer?) -> Void,
        made: (UnsafeMutablePointer<OpaquePointer?>, UnsafeMutablePointer<OpaquePointer?>) -> mc_status
    ) throws {
        var out: OpaquePointer?
        do {
            try call { made(&out, $0) }
        } catch {
            free(out)  // a cancelled call may hand over what it had
            throw error
        }
        guard let out else { throw MetalCandleError(.panic, "a call succeeded and handed nothing over") }
        self.init(out, free: free)
    }

    deinit { free(pointer) }
}

/// The thread on which a model's calls run, one after another: they take long, and the threads of Swift's tasks must not wait.
///
/// Sessions of one model take turns here, token by token.
final class NativeQueue: Sendable {
    private let queue: DispatchQueue

    init(_ label: String) {
        queue = DispatchQueue(label: "metal-candle." + label, qos: .userInitiated)
    }

    /// Runs `work` behind everything that was given before. If the device is suspended it runs again when that is over, unless the
    /// app wants to hear of it.
    func run<Value: Sendable>(_ work: @escaping @Sendable () throws -> Value) async throws -> Value {
        while true {
            let openings = Gate.shared.openings
            do {
                return try await withCheckedThrowingContinuation { continuation in
                    queue.async { continuation.resume(with: Result(catching: work)) }
                }
            } catch let error as MetalCandleError where error.code == .suspended && MetalCandleRuntime.backgroundPolicy != .fail {
                try await Gate.shared.wait(after: openings)
            }
        }
    }

    /// The same, for nobody to wait for.
    func later(_ work: @escaping @Sendable () -> Void) {
        queue.async(execute: work)
    }
}

/// A flag that stops the calls that it is handed to.
final class CancelFlag: Sendable {
    private let handle = Handle(mc_cancel_new(), free: mc_cancel_free)

    var pointer: OpaquePointer { handle.pointer }

    func trigger() { mc_cancel_trigger(pointer) }

    /// Runs `operation`, and triggers the flag when the task around it is cancelled, also if it is already.
    func guarding<Value: Sendable>(
        isolation: isolated (any Actor)? = #isolation, _ operation: () async throws -> Value
    ) async throws -> Value {
        try await withTaskCancellationHandler(operation: operation, onCancel: { self.trigger() })
    }
}

/// Calls `handle` on the thread that posts a notification, until this is let go.
final class NotificationToken: @unchecked Sendable {
    private let observer: any NSObjectProtocol

    init(_ name: Notification.Name, _ handle: @escaping @Sendable () -> Void) {
        observer = NotificationCenter.default.addObserver(forName: name, object: nil, queue: nil) { _ in handle() }
    }

    deinit { NotificationCenter.default.removeObserver(observer) }
}
