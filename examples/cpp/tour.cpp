// The first token in five lines:
//
//     metal_candle::model model("models/tiny-coder");
//     metal_candle::session session(model);
//     session.set_chat(metal_candle::chat().add("user", "What does `Vec::push` do?"));
//     for (const auto &token : session.tokens()) std::cout << token.text << std::flush;
//
// And the rest: load with progress, stream, cancel, rank texts, train an adapter and ask with it.
//
//     c++ -std=c++17 examples/cpp/tour.cpp -o tour -Iinclude -Ltarget/release -lmetal_candle -Wl,-rpath,target/release
//     ./tour

#include <metal_candle.hpp>

#include <iostream>

namespace mc = metal_candle;

namespace {

void print(const mc::token &token) { std::cout << token.text << std::flush; }

mc::generation ask(mc::session &session, const std::string &question, const mc::generate_options &options = {}) {
    mc::chat chat;
    session.set_chat(chat.add("user", question));
    auto answer = session.generate(options, print);
    std::cout << "\n";
    return answer;
}

void talk(const mc::model &model) {
    mc::session session(model);
    ask(session, "What does `Vec::push` do?");

    mc::cancel cancel; // Any thread may trigger it.
    mc::generate_options options;
    options.cancel = &cancel;
    mc::chat chat;
    session.set_chat(chat.add("user", "What is a `HashMap`?"));
    auto answer = session.generate(options, [&](const mc::token &token) {
        print(token);
        if (token.index == 3) cancel.trigger();
    });
    std::cout << (answer.finish_reason == MC_FINISH_CANCELLED ? " … cancelled\n" : "\n");
}

void rank(const mc::model &embedder) {
    const std::vector<std::string_view> texts{"sleep for one second", "add an element to a vector", "open a file for reading"};
    const auto query = embedder.embed("push onto a Vec"), documents = embedder.embed(texts);
    for (auto [index, score] : mc::nearest(embedder.similarity(), query, documents, texts.size()))
        std::cout << score << "  " << texts[index] << "\n";
}

void train(const mc::model &model) {
    mc::train_options options;
    options.learning_rate = 5e-3;
    options.epochs = 3;
    options.schedule = mc::train_options::learning_rate_schedule{MC_SCHEDULE_CONSTANT, 0, 20};
    mc::trainer trainer(model, {}, options);
    trainer.train(mc::dataset("examples/data/facts.jsonl"), nullptr, [](const mc_train_event &event) {
        std::cerr << "\rstep " << event.step << " of " << event.total_steps << ", loss " << event.loss << "  " << std::flush;
    });
    std::cerr << "\n";

    const mc::lora adapter = trainer.adapter();
    mc::session session(model);
    session.set_lora(&adapter);
    ask(session, "What is the bird of Velmora?");
}

} // namespace

int main(int argc, char **argv) try {
    mc::model_options options;
    options.progress = [](const mc::progress &p) {
        std::cerr << "\rloading " << (p.total ? 100 * p.done / p.total : 0) << " %" << std::flush;
    };
    const mc::model model(argc > 1 ? argv[1] : "models/tiny-coder", options);
    std::cerr << "\n";

    talk(model);
    rank(mc::model("models/tiny-embed"));
    train(model);
} catch (const mc::error &error) {
    std::cerr << error.name() << ": " << error.what() << "\n";
    return 1;
}
