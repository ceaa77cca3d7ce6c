import Foundation

/// Brings a model's files to this machine: for apps that have their own way, such as background assets or a server of theirs.
///
/// ```swift
/// struct Bundled: ModelDownloader {
///     func download(_ id: String, revision: String, progress: @escaping @Sendable (Double) -> Void) async throws -> URL {
///         URL.applicationDirectory.appending(path: "Models/\(id)")
///     }
/// }
/// let model = try await LanguageModel.load("tiny-coder", using: Bundled())
/// ```
public protocol ModelDownloader: Sendable {
    /// Makes sure that a model's files are here.
    ///
    /// - Parameters:
    ///   - id: what the app knows the model by.
    ///   - revision: a branch, tag or commit.
    ///   - progress: is told how much of the download is done, 0 to 1.
    /// - Returns: the directory with the files, as ``LanguageModel/load(from:options:progress:)`` takes it.
    func download(_ id: String, revision: String, progress: @escaping @Sendable (Double) -> Void) async throws -> URL
}
