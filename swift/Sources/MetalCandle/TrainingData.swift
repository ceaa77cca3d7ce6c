import CMetalCandle
import Foundation

/// Examples to learn from. A model's tokenizer and chat template make tokens of them when training begins.
public final class TrainingData: Sendable {
    let handle: Handle

    /// Takes examples, in their order.
    ///
    /// - Throws: ``MetalCandleError`` with `.format` for arguments or parameters of tools that are no JSON.
    public init(_ examples: [TrainingExample]) throws {
        handle = Handle(mc_dataset_new(), free: mc_dataset_free)
        for example in examples { try example.add(to: handle.pointer) }
    }

    /// Reads a file of JSON lines, one example a line: `{"messages": […]}`, optionally with `tools`; `{"prompt": …, "completion": …}`; or
    /// `{"text": …}`.
    ///
    /// - Throws: ``MetalCandleError``: `.notFound` or `.io` for the file, `.format` or `.invalidUTF8` with the number of the line.
    public init(jsonLines file: URL) async throws {
        let path = try file.nativePath("file")
        handle = try await NativeQueue("data").run {
            try Handle(free: mc_dataset_free) { mc_dataset_load_jsonl(path, $0, $1) }
        }
    }

    /// How many examples there are.
    public var count: Int { mc_dataset_len(handle.pointer) }
}

/// One example to learn from.
public enum TrainingExample: Sendable, Hashable {
    /// A text, of which all is trained on.
    case text(String)
    /// A text that is to follow another one. The two are joined as they are.
    case completion(prompt: String, completion: String)
    /// A conversation, of which the assistant's messages are trained on.
    case conversation([ChatMessage], tools: [ToolDefinition] = [])

    fileprivate func add(to dataset: OpaquePointer) throws {
        switch self {
        case .text(let text):
            try call { error in text.withBytes { mc_dataset_add_text(dataset, $0, $1, error) } }
        case .completion(let prompt, let completion):
            try call { error in
                prompt.withBytes { prompt, promptLength in
                    completion.withBytes { mc_dataset_add_completion(dataset, prompt, promptLength, $0, $1, error) }
                }
            }
        case .conversation(let messages, let tools):
            let chat = try ChatTemplateInput(messages: messages, tools: tools, variables: [:]).native()
            try call { mc_dataset_add_chat(dataset, chat.pointer, $0) }
        }
    }
}
