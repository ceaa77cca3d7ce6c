import CMetalCandle
import Foundation

// Small bridges between Swift's values and the C interface's.

extension String {
    /// UTF-8 of a known length, as the library hands it out.
    init(bytes: UnsafePointer<CChar>, count: Int) {
        self = bytes.withMemoryRebound(to: UInt8.self, capacity: count) {
            String(decoding: UnsafeBufferPointer(start: $0, count: count), as: UTF8.self)
        }
    }

    /// A result of a call; frees it.
    init(made result: (UnsafeMutablePointer<OpaquePointer?>, UnsafeMutablePointer<OpaquePointer?>) -> mc_status) throws {
        let string = try Handle(free: mc_string_free, made: result)
        self = String(bytes: mc_string_data(string.pointer), count: mc_string_len(string.pointer))
    }

    /// The bytes for a pointer and a length: text may contain NUL. The pointer of an empty text is valid too.
    func withBytes<Result>(_ body: (UnsafePointer<CChar>, Int) throws -> Result) rethrows -> Result {
        var text = self
        return try text.withUTF8 { bytes in
            try bytes.withMemoryRebound(to: CChar.self) { bytes in
                if let start = bytes.baseAddress { return try body(start, bytes.count) }
                return try withUnsafePointer(to: 0) { try body($0, 0) }
            }
        }
    }
}

extension [UInt32] {
    /// Tokens that a call hands out; frees them.
    init(made result: (UnsafeMutablePointer<OpaquePointer?>, UnsafeMutablePointer<OpaquePointer?>) -> mc_status) throws {
        let tokens = try Handle(free: mc_tokens_free, made: result)
        self.init(UnsafeBufferPointer(start: mc_tokens_data(tokens.pointer), count: mc_tokens_len(tokens.pointer)))
    }
}

extension URL {
    /// The path of a file, as the library opens it. C would read a path with a NUL as another, shorter one.
    func nativePath(_ name: String) throws -> String {
        let path = path(percentEncoded: false)
        guard isFileURL, !path.utf8.contains(0) else {
            throw MetalCandleError(.invalidArgument, "\(name): expected the URL of a file, found \(absoluteString)")
        }
        return path
    }
}

/// C would read a name with a NUL as another, shorter one. Does not tell what it found: that may be a token.
func requireNoNUL(_ text: String, _ name: String) throws {
    if text.utf8.contains(0) { throw MetalCandleError(.invalidArgument, "\(name): expected a text without NUL, found one") }
}

// Of the C interface's numbers none is negative, and 0 often means "no limit", which here is nil.

func requireNotNegative(_ value: Int, _ name: String) throws {
    if value < 0 { throw MetalCandleError(.invalidArgument, "\(name): expected 0 or more, found \(value)") }
}

func requirePositive(_ value: Int, _ name: String) throws {
    if value < 1 { throw MetalCandleError(.invalidArgument, "\(name): expected 1 or more, found \(value)") }
}
