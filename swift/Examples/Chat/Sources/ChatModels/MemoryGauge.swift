import MetalCandle
import Observation

/// How much of the device's memory is in use.
@MainActor @Observable public final class MemoryGauge {
    public private(set) var memory: ComputeDevice.Memory?
    private let device: ComputeDevice?

    public init() {
        device = try? ComputeDevice()
        refresh()
    }

    /// Of what there is, 0 to 1; nil where the system does not tell.
    public var fraction: Double? {
        memory.map { Double($0.usedBytes) / Double(max($0.totalBytes, 1)) }
    }

    public func refresh() { memory = try? device?.memory() }
}
