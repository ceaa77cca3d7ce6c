import Foundation
import MetalCandle
import Synchronization
import Testing

/// One test at a time: some count the process's native objects, or set what holds for all of it.
@Suite(.serialized) struct MetalCandleTests {}

/// The repository, found from this file.
let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()
let tinyCoder = root.appending(path: "models/tiny-coder")
let tinyEmbed = root.appending(path: "models/tiny-embed")

let question = "What does `Vec::push` do?"
let answer = "Appends an element to the back of a collection."
let greedy = ResponseOptions(temperature: 0)

func loadCoder(_ options: ModelOptions = ModelOptions()) async throws -> LanguageModel {
    try await LanguageModel.load(from: tinyCoder, options: options)
}

/// What an operation throws must be this error of the library.
func expect(
    _ code: MetalCandleError.Code, _ contains: String = "", sourceLocation: SourceLocation = #_sourceLocation,
    _ operation: () async throws -> some Any
) async {
    do {
        let value = try await operation()
        Issue.record("expected \(code), found \(value)", sourceLocation: sourceLocation)
    } catch let error as MetalCandleError {
        #expect(error.code == code, "\(error)", sourceLocation: sourceLocation)
        #expect(contains.isEmpty || error.message.contains(contains), sourceLocation: sourceLocation)
    } catch {
        Issue.record("expected \(code), found \(error)", sourceLocation: sourceLocation)
    }
}

/// What an operation throws must be Swift's own error of a cancelled task.
func expectCancelled(sourceLocation: SourceLocation = #_sourceLocation, _ operation: () async throws -> some Any) async {
    do {
        let value = try await operation()
        Issue.record("expected a cancellation, found \(value)", sourceLocation: sourceLocation)
    } catch {
        #expect(error is CancellationError, "\(error)", sourceLocation: sourceLocation)
    }
}

/// Values that callbacks on any thread leave behind.
final class Recorder<Value: Sendable>: Sendable {
    private let list = Mutex<[Value]>([])

    var values: [Value] { list.withLock { $0 } }

    func append(_ value: Value) { list.withLock { $0.append(value) } }
}

/// A directory that is removed when the test lets go of it.
final class TemporaryDirectory {
    let url = FileManager.default.temporaryDirectory.appending(path: "metal-candle-\(UUID().uuidString)")

    init() throws { try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true) }

    /// A copy of a model, to be damaged.
    func copy(of model: URL) throws -> URL {
        let copy = url.appending(path: model.lastPathComponent)
        try FileManager.default.copyItem(at: model, to: copy)
        return copy
    }

    deinit { try? FileManager.default.removeItem(at: url) }
}

/// An adapter of rank 2 for the queries of tiny-coder's eight layers, with values from a fixed sequence.
func writeAdapter(to directory: URL) throws -> URL {
    var state: UInt32 = 1
    func value() -> Float {
        state = state &* 1_664_525 &+ 1_013_904_223
        return Float(state >> 8) / Float(1 << 24) - 0.5
    }
    var (header, data) = (["{"], Data())
    for layer in 0..<8 {
        for (name, shape) in [("lora_A", "[2,256]"), ("lora_B", "[256,2]")] {
            let start = data.count
            for _ in 0..<512 { withUnsafeBytes(of: value().bitPattern.littleEndian) { data.append(contentsOf: $0) } }
            let key = "base_model.model.model.layers.\(layer).self_attn.q_proj.\(name).weight"
            header.append(#""\#(key)":{"dtype":"F32","shape":\#(shape),"data_offsets":[\#(start),\#(data.count)]}"#)
        }
    }
    let json = "{" + header.dropFirst().joined(separator: ",") + "}"
    var file = withUnsafeBytes(of: UInt64(json.utf8.count).littleEndian) { Data($0) }
    file.append(contentsOf: json.utf8)
    file.append(data)
    try file.write(to: directory.appending(path: "adapter_model.safetensors"))
    try Data(#"{"peft_type":"LORA","r":2,"lora_alpha":16,"target_modules":["q_proj"],"bias":"none"}"#.utf8)
        .write(to: directory.appending(path: "adapter_config.json"))
    return directory
}

/// Waits for what another thread is about to do, half a minute at most.
func eventually(_ condition: () -> Bool, sourceLocation: SourceLocation = #_sourceLocation) async {
    let deadline = ContinuousClock.now + .seconds(30)
    while !condition() {
        guard ContinuousClock.now < deadline else {
            Issue.record("it never happened", sourceLocation: sourceLocation)
            return
        }
        await Task.yield()
    }
}
