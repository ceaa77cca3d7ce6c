import ChatModels
import MetalCandle
import SwiftUI

struct SearchTab: View {
    var body: some View {
        LoadedView { (model: EmbeddingModel) in SearchView(search: SearchModel(model)) }
    }
}

struct SearchView: View {
    @State var search: SearchModel
    @State private var isChoosing = false

    var body: some View {
        List {
            if let failure = search.failure { Label(failure, systemImage: "exclamationmark.triangle") }
            if search.isIndexing { ProgressView("Reading \(search.lines.count) lines") }
            ForEach(search.results) { result in
                LabeledContent(result.line) { Text(result.similarity, format: .number.precision(.fractionLength(2))) }
            }
        }
        .overlay {
            if search.lines.isEmpty { ContentUnavailableView("Choose a text file", systemImage: "doc.text", description: Text("Its lines are searched by meaning.")) }
        }
        .searchable(text: $search.query)
        .navigationTitle("Search")
        .toolbar {
            ToolbarItem { Button("Open", systemImage: "folder") { isChoosing = true } }
        }
        .fileImporter(isPresented: $isChoosing, allowedContentTypes: [.plainText]) { result in
            guard let url = try? result.get(), url.startAccessingSecurityScopedResource() else { return }
            defer { url.stopAccessingSecurityScopedResource() }
            if let text = try? String(contentsOf: url, encoding: .utf8) { search.index(text) }
        }
    }
}
