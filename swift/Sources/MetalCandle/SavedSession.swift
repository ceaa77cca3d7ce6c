import CMetalCandle
import Foundation

extension ChatSession {
    /// What a directory holds besides the states of the model.
    private struct Saved: Codable {
        var version = 1
        var initial: [ChatMessage]
        var history: [ChatMessage]
        var tools: [ToolDefinition]
        var templateVariables: [String: String]
    }

    /// Writes the conversation, and what the model has evaluated of it, to go on later with
    /// ``load(from:model:adapters:options:)``: then nothing is evaluated again. An answer that is being read is not part of it.
    ///
    /// - Parameter directory: made if it does not exist; a conversation that is there is replaced.
    /// - Throws: ``MetalCandleError`` with `.io`.
    public func save(to directory: URL) async throws {
        let path = try directory.appending(path: "states").nativePath("directory")
        let saved = Saved(initial: initial, history: history, tools: tools, templateVariables: templateVariables)
        try await onQueue { native, owner in
            try Self.files(directory) {
                try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
            }
            // The texts last: states of another conversation are of no use to it, and do it no harm.
            if let session = native.existingSession(of: owner) {
                try call { mc_session_save(session.pointer, path, $0) }
            }
            try Self.files(directory) {
                try JSONEncoder().encode(saved).write(to: directory.appending(path: "conversation.json"), options: .atomic)
            }
        }
    }

    /// Goes on with a conversation that ``save(to:)`` wrote.
    ///
    /// - Parameters:
    ///   - directory: where it is.
    ///   - model: the model that answers. If it is another one than before, or keeps what it has evaluated in another type, the
    ///     conversation is evaluated anew with the next answer.
    ///   - adapters: what answers are made with; they are not part of what was written. With the same as before nothing is evaluated
    ///     again.
    ///   - options: how answers are generated; neither are these.
    /// - Throws: ``MetalCandleError``: `.notFound`, `.io` or `.format` for the files; `.contextFull` if the model was loaded for fewer
    ///   tokens.
    public static func load(
        from directory: URL, model: LanguageModel, adapters: [AttachedAdapter] = [], options: ResponseOptions = ResponseOptions()
    ) async throws -> ChatSession {
        let file = directory.appending(path: "conversation.json")
        let path = try directory.appending(path: "states").nativePath("directory")
        let data = try files(file) { try Data(contentsOf: file) }
        let saved: Saved
        do {
            saved = try JSONDecoder().decode(Saved.self, from: data)
        } catch {
            throw MetalCandleError(.format, "\(file.path): expected a conversation, found \(error)")
        }
        guard saved.version == 1 else {
            throw MetalCandleError(.format, "\(file.path): expected a conversation of version 1, found \(saved.version)")
        }
        let session = ChatSession(
            model, initial: saved.initial, history: saved.history, tools: saved.tools, templateVariables: saved.templateVariables,
            adapters: adapters, options: options)
        try await session.onQueue { native, owner in
            let model = try native.loaded()
            guard FileManager.default.fileExists(atPath: path) else { return }
            do {
                native.adopt(try Handle(free: mc_session_free) { mc_session_load(model.pointer, path, $0, $1) }, for: owner)
            } catch let error as MetalCandleError where error.code == .mismatch {
                // The texts are what counts.
            }
        }
        return session
    }

    /// Work with files, whose errors become the library's.
    private static func files<Result>(_ url: URL, _ work: () throws -> Result) throws -> Result {
        do {
            return try work()
        } catch let error as CocoaError {
            let code: MetalCandleError.Code = [.fileNoSuchFile, .fileReadNoSuchFile].contains(error.code) ? .notFound : .io
            throw MetalCandleError(code, "\(url.path): \(error.localizedDescription)")
        }
    }
}
