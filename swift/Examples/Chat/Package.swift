// swift-tools-version: 6.0
// The sample app. Its view models are a plain target, which Linux builds and tests too; the views need SwiftUI.
import PackageDescription

#if canImport(Darwin)
let app: [Target] = [.executableTarget(name: "Chat", dependencies: ["ChatModels"])]
#else
let app: [Target] = []
#endif

let package = Package(
    name: "Chat",
    platforms: [.macOS(.v15), .iOS(.v18)],
    products: [.library(name: "ChatModels", targets: ["ChatModels"])],
    dependencies: [.package(name: "metal-candle", path: "../../..")],
    targets: app + [
        .target(name: "ChatModels", dependencies: [.product(name: "MetalCandle", package: "metal-candle")]),
        .testTarget(name: "ChatModelsTests", dependencies: ["ChatModels"]),
    ],
    swiftLanguageModes: [.v6]
)
