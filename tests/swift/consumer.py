"""Writes a Swift package that compiles every snippet of this one's texts: consumer.py DIRECTORY PACKAGE

README.md's is the program `readme`; each of an article is a file of its own; one of a documentation comment becomes the body of a
function that is handed what such snippets take for granted.
"""

import re
import sys
from pathlib import Path

directory, package = Path(sys.argv[1]), Path(sys.argv[2])
root = Path(__file__).resolve().parents[2]

MANIFEST = f"""// swift-tools-version: 6.0
import PackageDescription

let metalCandle = Target.Dependency.product(name: "MetalCandle", package: "metal-candle")
let package = Package(
    name: "consumer",
    platforms: [.macOS(.v15), .iOS(.v18)],
    dependencies: [.package(url: "file://{package}", from: "1.2.3")],
    targets: [
        .executableTarget(name: "readme", dependencies: [metalCandle]),
        .target(name: "snippets", dependencies: [metalCandle]),
    ],
    swiftLanguageModes: [.v6]
)
"""

COMMENT = """import Foundation
import MetalCandle

private func snippet(_ directory: URL, _ model: LanguageModel, _ session: ChatSession) async throws {{
{}
}}
"""


def snippets(text):
    return re.findall(r"^```swift\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


write(directory / "Package.swift", MANIFEST)
(readme,) = snippets((root / "README.md").read_text(encoding="utf-8"))
# The program itself, with a model that needs no network.
from_hub, from_folder = 'hub: HubModel("Qwen/Qwen3-0.6B")', 'from: URL(filePath: "models/tiny-coder")'
assert readme.count(from_hub) == 1, f"README.md: expected {from_hub}"
readme = "import Foundation\n" + readme.replace(from_hub, from_folder)
write(directory / "Sources/readme/main.swift", readme)

sources = root / "swift/Sources/MetalCandle"
articles = [(path.stem, text) for path in sorted(sources.glob("*.docc/*.md")) for text in snippets(path.read_text(encoding="utf-8"))]
comments = []
for path in sorted(sources.glob("*.swift")):
    lines = re.sub(r"^ *///? ?", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    comments += [(path.stem, COMMENT.format(text)) for text in snippets(lines)]
if not articles or not comments:
    sys.exit("no snippet was found")
for index, (name, text) in enumerate(articles + comments):
    write(directory / f"Sources/snippets/{name}{index}.swift", text)
print(f"{len(articles)} snippets of articles, {len(comments)} of comments")
