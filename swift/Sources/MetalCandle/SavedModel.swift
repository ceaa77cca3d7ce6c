import CMetalCandle
import Foundation

/// What the matrices of a GGUF file become that are not quantised.
public enum GGUFFormat: String, Sendable, Hashable, CaseIterable {
    /// Numbers of 32 bits.
    case f32
    /// Numbers of 16 bits.
    case f16
    /// Numbers of 16 bits with the range of those of 32.
    case bf16
    /// As ``ModelOptions/Quantization/q8_0``.
    case q8_0
    /// As ``ModelOptions/Quantization/q6_k``.
    case q6_k
    /// As ``ModelOptions/Quantization/q5_k_m``.
    case q5_k_m
    /// As ``ModelOptions/Quantization/q4_k_m``.
    case q4_k_m
    /// As ``ModelOptions/Quantization/q4_0``.
    case q4_0
    /// As ``ModelOptions/Quantization/iq4_nl``.
    case iq4_nl
}

extension LanguageModel {
    /// Writes the model as a directory, which can be loaded again, by others too: so a model that adapters were merged into is kept.
    ///
    /// What has not changed is taken from the files that the model was loaded from, which must still be there. Merged matrices are
    /// numbers of 32 bits; quantised ones are written as the numbers that they stand for.
    ///
    /// - Parameters:
    ///   - directory: where nothing is yet, or an empty directory; it appears when all is written.
    ///   - type: of all matrices but small ones; nil = as described.
    ///   - progress: called with how much is written, from 0 to 1, on a thread of the library's choice.
    /// - Throws: ``MetalCandleError``; `CancellationError`, and then nothing is left behind.
    public func save(
        to directory: URL, as type: ModelOptions.WeightType? = nil, progress: (@Sendable (Double) -> Void)? = nil
    ) async throws {
        try await native.save(to: directory, as: type, progress: progress)
    }

    /// Writes a model that was loaded from a GGUF file as one. Tensors that nothing was merged into stay what they are, byte by byte.
    ///
    /// - Parameters:
    ///   - file: one that is there is replaced, once all is written.
    ///   - format: what matrices become that are not quantised, such as merged ones; nil = they stay as they are.
    ///   - progress: called with how much is written, from 0 to 1, on a thread of the library's choice.
    /// - Throws: ``MetalCandleError``, with `.unsupported` for a model that was loaded from a directory of safetensors;
    ///   `CancellationError`, and then nothing is left behind.
    public func saveGGUF(
        to file: URL, as format: GGUFFormat? = nil, progress: (@Sendable (Double) -> Void)? = nil
    ) async throws {
        try await native.saveGGUF(to: file, as: format, progress: progress)
    }
}

extension EmbeddingModel {
    /// Writes the model as a directory; see ``LanguageModel/save(to:as:progress:)``.
    public func save(
        to directory: URL, as type: ModelOptions.WeightType? = nil, progress: (@Sendable (Double) -> Void)? = nil
    ) async throws {
        try await native.save(to: directory, as: type, progress: progress)
    }

    /// Writes the model as a GGUF file; see ``LanguageModel/saveGGUF(to:as:progress:)``.
    public func saveGGUF(
        to file: URL, as format: GGUFFormat? = nil, progress: (@Sendable (Double) -> Void)? = nil
    ) async throws {
        try await native.saveGGUF(to: file, as: format, progress: progress)
    }
}

extension NativeModel {
    fileprivate func save(
        to directory: URL, as type: ModelOptions.WeightType?, progress: (@Sendable (Double) -> Void)?
    ) async throws {
        let path = try directory.nativePath("directory")
        try await reporting(progress) { mc_model_save($0, path, type?.name, $1, $2, $3) }
    }

    fileprivate func saveGGUF(to file: URL, as format: GGUFFormat?, progress: (@Sendable (Double) -> Void)?) async throws {
        let path = try file.nativePath("file")
        try await reporting(progress) { mc_model_save_gguf($0, path, format?.rawValue, $1, $2, $3) }
    }

    private func reporting(
        _ progress: (@Sendable (Double) -> Void)?,
        _ write: @escaping @Sendable (
            OpaquePointer, mc_progress_fn, UnsafeMutableRawPointer, UnsafeMutablePointer<OpaquePointer?>
        ) -> mc_status
    ) async throws {
        try await run { model, cancel in
            let reporter = SaveReporter(cancel: cancel, report: progress)
            try withExtendedLifetime(reporter) {
                try call { write(model, reportSave, Unmanaged.passUnretained(reporter).toOpaque(), $0) }
            }
        }
    }
}

extension ModelOptions.WeightType {
    /// As the library spells it.
    fileprivate var name: String {
        switch self {
        case .float32: "f32"
        case .float16: "f16"
        case .bfloat16: "bf16"
        }
    }
}

/// Passes on how much is written, and stops where the task around it is cancelled.
private final class SaveReporter: Sendable {
    let cancel: CancelFlag
    let report: (@Sendable (Double) -> Void)?

    init(cancel: CancelFlag, report: (@Sendable (Double) -> Void)?) {
        self.cancel = cancel
        self.report = report
    }
}

private let reportSave: mc_progress_fn = { reporter, event in
    guard let reporter else { return MC_CONTINUE }
    let saving = Unmanaged<SaveReporter>.fromOpaque(reporter).takeUnretainedValue()
    let (done, total) = (Double(event.pointee.done), Double(event.pointee.total))
    if total > 0 { saving.report?(done / total) }
    return mc_cancel_is_triggered(saving.cancel.pointer) ? MC_STOP : MC_CONTINUE
}
