// swift-tools-version: 6.0
// The Swift package. On Apple platforms the Rust library comes as an XCFramework. Elsewhere the linker finds it: installed where it
// looks, or by LIBRARY_PATH, -Xlinker -L, or PKG_CONFIG_PATH (`make install PREFIX=…`, then `PKG_CONFIG_PATH=…/lib/pkgconfig swift build`).
import PackageDescription

#if canImport(Darwin)
// Where the XCFramework of a release is, and the checksum that stands beside it there (RELEASING.md). Without one it is what
// swift/scripts/build-xcframework.sh makes, by a path relative to this file.
let released: (url: String, checksum: String)? = nil
let local = Context.environment["METAL_CANDLE_XCFRAMEWORK"]
let framework: Target =
    if let released, local == nil {
        .binaryTarget(name: "CMetalCandleLink", url: released.url, checksum: released.checksum)
    } else {
        .binaryTarget(name: "CMetalCandleLink", path: local ?? "build/MetalCandle.xcframework")
    }
let native = [framework]
let libraries: [LinkerSetting] = ["CoreFoundation", "Foundation", "Metal", "Security"].map { .linkedFramework($0) }
#else
// SwiftPM warns of a .pc file that is not there, so it is only told to look where somebody says where.
let native: [Target] =
    Context.environment["PKG_CONFIG_PATH"] == nil
    ? [] : [.systemLibrary(name: "CMetalCandleLink", path: "swift/Sources/CMetalCandleLink", pkgConfig: "metal-candle")]
let libraries: [LinkerSetting] = ["metal_candle", "gcc_s", "m"].map { .linkedLibrary($0) }
#endif

let package = Package(
    name: "metal-candle",
    platforms: [.macOS(.v15), .iOS(.v18)],
    products: [.library(name: "MetalCandle", targets: ["MetalCandle"])],
    targets: native + [
        .target(name: "CMetalCandle", path: "swift/Sources/CMetalCandle"),
        .target(
            name: "MetalCandle", dependencies: ["CMetalCandle"] + native.map { .target(name: $0.name) },
            path: "swift/Sources/MetalCandle", resources: [.copy("PrivacyInfo.xcprivacy")], linkerSettings: libraries),
        .executableTarget(
            name: "mc-chat", dependencies: ["MetalCandle"], path: "swift/Examples/CommandLine"),
        .testTarget(
            name: "MetalCandleTests", dependencies: ["MetalCandle", "CMetalCandle"], path: "swift/Tests/MetalCandleTests"),
    ],
    swiftLanguageModes: [.v6]
)
