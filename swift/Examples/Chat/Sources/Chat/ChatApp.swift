import ChatModels
import MetalCandle
import SwiftUI

@main struct ChatApp: App {
    var body: some Scene {
        WindowGroup {
            TabView {
                Tab("Chat", systemImage: "bubble.left.and.bubble.right") { ChatTab() }
                Tab("Search", systemImage: "magnifyingglass") { SearchTab() }
                Tab("LoRA", systemImage: "slider.horizontal.3") { TrainingTab() }
            }
        }
    }
}

/// Shows `content` when a model is there, and before that how to get one.
struct LoadedView<Model: Loadable, Content: View>: View {
    @State private var loader = ModelLoader<Model>()
    @State private var gauge = MemoryGauge()
    @ViewBuilder let content: (Model) -> Content

    var body: some View {
        NavigationStack {
            if let model = loader.model {
                content(model).toolbar {
                    ToolbarItem { GaugeView(gauge: gauge) }
                    ToolbarItem { Button("Unload", systemImage: "eject") { loader.unload() } }
                }
            } else {
                LoaderView(loader: loader)
            }
        }
    }
}

/// Asks for a model, then shows how far it is.
struct LoaderView<Model: Loadable>: View {
    let loader: ModelLoader<Model>
    @State private var repository = ""
    @State private var isChoosing = false

    var body: some View {
        Form {
            if let fraction = loader.fraction {
                ProgressView(value: fraction) { Text(title) }
                Button("Cancel", role: .cancel) { loader.cancel() }
            } else {
                if case .failed(let message) = loader.state { Label(message, systemImage: "exclamationmark.triangle") }
                Section("On this device") {
                    Button("Choose a folder…") { isChoosing = true }
                }
                Section("Hugging Face") {
                    TextField("owner/name", text: $repository)
                    Button("Download") { loader.load(.hub(HubModel(repository, cache: cache))) }.disabled(repository.isEmpty)
                }
            }
        }
        .fileImporter(isPresented: $isChoosing, allowedContentTypes: [.folder]) { result in
            guard let url = try? result.get() else { return }
            // The right to read lasts as long as the app: weights stay mapped.
            _ = url.startAccessingSecurityScopedResource()
            loader.load(.directory(url))
        }
    }

    private var title: String {
        switch loader.state {
        case .downloading: "Downloading"
        case .compiling: "Preparing the GPU"
        default: "Loading"
        }
    }

    private var cache: URL { .applicationSupportDirectory.appending(path: "models") }
}

/// How much memory is in use.
struct GaugeView: View {
    let gauge: MemoryGauge

    var body: some View {
        Gauge(value: gauge.fraction ?? 0) { Image(systemName: "memorychip") }
            .gaugeStyle(.accessoryCircularCapacity)
            .task {
                while !Task.isCancelled {
                    gauge.refresh()
                    try? await Task.sleep(for: .seconds(2))
                }
            }
    }
}
