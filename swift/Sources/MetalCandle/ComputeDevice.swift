import CMetalCandle

/// Where the arithmetic runs: the processor, an Apple GPU or an NVIDIA GPU.
///
/// A model loads onto the best device by itself. Open one to choose, or to ask for its memory:
///
/// ```swift
/// let device = try ComputeDevice(.cpu)
/// let model = try await LanguageModel.load(from: directory, options: ModelOptions(device: device))
/// ```
public final class ComputeDevice: Sendable {
    /// A kind of device.
    public enum Kind: Sendable, Hashable, CaseIterable {
        /// The best there is: a GPU where this build and this machine have one, else the processor.
        case automatic
        /// The processor.
        case cpu
        /// An Apple GPU.
        case metal
        /// An NVIDIA GPU.
        case cuda
    }

    /// How much of a device's memory is in use.
    public struct Memory: Sendable, Hashable {
        /// Bytes in use by this process; on CUDA by all.
        public let usedBytes: UInt64
        /// Bytes there are; on Metal what the system recommends to use at most.
        public let totalBytes: UInt64
    }

    let handle: Handle

    /// Opens a device.
    ///
    /// - Parameters:
    ///   - kind: which kind.
    ///   - index: which of them, below ``count(of:)``; 0 for `.automatic` and `.cpu`.
    /// - Throws: ``MetalCandleError`` with `.notFound` if this build or machine has no such device.
    public init(_ kind: Kind = .automatic, index: Int = 0) throws {
        try requireNotNegative(index, "index")
        handle = try Handle(free: mc_device_free) { mc_device_new(kind.native, index, $0, $1) }
    }

    /// How many devices of a kind this process can open; 0 where the build or machine has none.
    public static func count(of kind: Kind) -> Int { mc_device_count(kind.native) }

    /// What was opened; never `.automatic`.
    public var kind: Kind { Kind.allCases.first { $0.native == mc_device_kind_of(handle.pointer) } ?? .cpu }

    /// What the system calls the device.
    public var name: String { String(cString: mc_device_name(handle.pointer)) }

    /// How much of the device's memory is in use.
    ///
    /// - Throws: ``MetalCandleError`` with `.unsupported` where the system does not tell.
    public func memory() throws -> Memory {
        var (used, total): (UInt64, UInt64) = (0, 0)
        try call { mc_device_memory(handle.pointer, &used, &total, $0) }
        return Memory(usedBytes: used, totalBytes: total)
    }

    /// Stops work on the device: it blocks until calls that run have reached their next token or prefill step. What they do then, and
    /// what new ones do, says ``MetalCandleRuntime/backgroundPolicy``.
    ///
    /// All of an Apple GPU is one; of other kinds, only models that were loaded onto this very object stop.
    ///
    /// - Parameter timeout: how long to wait.
    /// - Throws: ``MetalCandleError`` with `.busy` if work still runs after `timeout`; the device is suspended all the same.
    public func suspend(timeout: Duration = .seconds(2)) throws {
        let milliseconds = timeout.components.seconds * 1000 + timeout.components.attoseconds / 1_000_000_000_000_000
        try call { mc_device_suspend(handle.pointer, UInt32(clamping: milliseconds), $0) }
    }

    /// Lets work run again after ``suspend(timeout:)``, and wakes calls that wait.
    public func resume() {
        mc_device_resume(handle.pointer)
        Gate.shared.open()
    }
}

extension ComputeDevice.Kind {
    var native: mc_device_kind {
        switch self {
        case .automatic: .MC_DEVICE_AUTO
        case .cpu: .MC_DEVICE_CPU
        case .metal: .MC_DEVICE_METAL
        case .cuda: .MC_DEVICE_CUDA
        }
    }
}
