import CMetalCandle
import Foundation

/// What went wrong: a code to decide by, and a message for people.
///
/// A cancelled call throws Swift's `CancellationError` instead.
public struct MetalCandleError: Error, Hashable, Sendable {
    /// The kind of failure. Later versions may have kinds that are not listed here.
    public let code: Code
    /// One line without a full stop: the subject, what was expected, what was found.
    public let message: String
    /// The message and every cause below it, one a line, for a log.
    public let details: String

    /// The kind of a failure: an open set, compared with its constants.
    public struct Code: RawRepresentable, Hashable, Sendable {
        /// The status of the C interface.
        public let rawValue: UInt32

        /// Makes a code of any status.
        public init(rawValue: UInt32) { self.rawValue = rawValue }

        /// An argument or option is outside its range.
        public static let invalidArgument = Code(.MC_ERROR_INVALID_ARGUMENT)
        /// Text is not UTF-8.
        public static let invalidUTF8 = Code(.MC_ERROR_INVALID_UTF8)
        /// A file, directory, token, device or chat template does not exist.
        public static let notFound = Code(.MC_ERROR_NOT_FOUND)
        /// Reading or writing a file failed.
        public static let io = Code(.MC_ERROR_IO)
        /// A download failed.
        public static let network = Code(.MC_ERROR_NETWORK)
        /// The content of a file or text contradicts its format.
        public static let format = Code(.MC_ERROR_FORMAT)
        /// The input is well formed, and this version does not implement it.
        public static let unsupported = Code(.MC_ERROR_UNSUPPORTED)
        /// More tokens than the context holds.
        public static let contextFull = Code(.MC_ERROR_CONTEXT_FULL)
        /// Memory ran out.
        public static let outOfMemory = Code(.MC_ERROR_OUT_OF_MEMORY)
        /// The compute device failed.
        public static let device = Code(.MC_ERROR_DEVICE)
        /// The device is suspended, and ``MetalCandleRuntime/backgroundPolicy`` says not to wait.
        public static let suspended = Code(.MC_ERROR_SUSPENDED)
        /// The object is in use by another call; nothing was changed.
        public static let busy = Code(.MC_ERROR_BUSY)
        /// Two things that must belong together do not, such as an adapter and a model.
        public static let mismatch = Code(.MC_ERROR_MISMATCH)
        /// An earlier ``panic`` left the object in an unknown state.
        public static let poisoned = Code(.MC_ERROR_POISONED)
        /// A chat template failed, or refused the conversation.
        public static let template = Code(.MC_ERROR_TEMPLATE)
        /// A defect of the library; please report it.
        public static let panic = Code(.MC_ERROR_PANIC)

        init(_ status: mc_status) { rawValue = UInt32(status.rawValue) }
    }

    init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
        details = message
    }

    /// Takes over what a call left behind `err`.
    init(_ status: mc_status, consuming error: OpaquePointer?) {
        code = Code(status)
        guard let error else {
            message = String(cString: mc_status_name(status))
            details = message
            return
        }
        defer { mc_error_free(error) }
        message = String(cString: mc_error_message(error))
        details = String(cString: mc_error_details(error))
    }
}

extension MetalCandleError: CustomStringConvertible, LocalizedError {
    /// The code's name and the message.
    public var description: String { "\(code): \(message)" }

    /// The message.
    public var errorDescription: String? { message }
}

extension MetalCandleError.Code: CustomStringConvertible {
    /// The name in the C interface, such as `MC_ERROR_BUSY`.
    public var description: String {
        mc_status(rawValue: mc_status.RawValue(rawValue)).map { String(cString: mc_status_name($0)) } ?? "\(rawValue)"
    }
}

/// Calls a function of the C interface with the place for its error. `MC_CANCELLED` becomes `CancellationError`.
func call(_ function: (UnsafeMutablePointer<OpaquePointer?>) -> mc_status) throws {
    var error: OpaquePointer?
    switch function(&error) {
    case .MC_OK: return
    case .MC_CANCELLED: throw CancellationError()
    case let status: throw MetalCandleError(status, consuming: error)
    }
}
