import CMetalCandle
import Foundation

/// A LoRA adapter: a fine-tuning that is kept apart from its model.
///
/// ```swift
/// let adapter = try await Adapter(directory: directory, for: model)
/// session.adapters = [AttachedAdapter(adapter)]
/// ```
///
/// The model never changes: sessions with different adapters share one, and a session without is as if there had never been any.
public final class Adapter: Sendable {
    let handle: Handle

    init(_ handle: Handle) { self.handle = handle }

    /// Loads an adapter from a directory in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`; or from a `.gguf` file
    /// that llama.cpp's converter made of one.
    ///
    /// - Parameters:
    ///   - directory: the adapter's files.
    ///   - model: the model that it was trained on.
    /// - Throws: ``MetalCandleError``: `.notFound`, `.io` or `.format` for the files, which must fit the model in every tensor;
    ///   `.unsupported` for an option that would change the result and is not implemented.
    public convenience init(directory: URL, for model: LanguageModel) async throws {
        try await self.init(directory, model.native)
    }

    /// Loads an adapter of an embedding model; else the same.
    public convenience init(directory: URL, for model: EmbeddingModel) async throws {
        try await self.init(directory, model.native)
    }

    private convenience init(_ directory: URL, _ model: NativeModel) async throws {
        let path = try directory.nativePath("directory")
        self.init(try await model.run { model, _ in try Handle(free: mc_lora_free) { mc_lora_load(model, path, $0, $1) } })
    }

    /// Writes the adapter in PEFT's layout. Loading it again gives the same results.
    ///
    /// - Parameter directory: made if it does not exist; an adapter that is there is replaced.
    public func save(to directory: URL) async throws {
        let path = try directory.nativePath("directory")
        try await NativeQueue("save").run { [handle] in try call { mc_lora_save(handle.pointer, path, $0) } }
    }

    /// The rank of its matrices; single modules may have another one.
    public var rank: Int { mc_lora_rank(handle.pointer) }
    /// A change counts `alpha / rank` times, or `alpha / sqrt(rank)` times with rsLoRA.
    public var alpha: Float { mc_lora_alpha(handle.pointer) }
    /// How many values it has.
    public var parameterCount: UInt64 { mc_lora_parameter_count(handle.pointer) }
}

/// An adapter, and how strongly it counts.
public struct AttachedAdapter: Sendable {
    /// The adapter.
    public var adapter: Adapter
    /// A factor for its changes: 1 = as trained, 0 = none.
    public var scale: Float

    /// Makes a use of an adapter.
    public init(_ adapter: Adapter, scale: Float = 1) {
        self.adapter = adapter
        self.scale = scale
    }
}

extension [AttachedAdapter] {
    /// Costs nothing if the session has them already.
    func attach(to session: OpaquePointer) throws {
        let adapters: [OpaquePointer?] = map(\.adapter.handle.pointer)
        try call { mc_session_set_loras(session, adapters, map(\.scale), count, $0) }
    }
}
