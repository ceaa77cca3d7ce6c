// From nothing to the first token:
//
//	model, err := metalcandle.Load(ctx, "models/tiny-coder", nil)
//	if err != nil {
//		return err
//	}
//	chat, err := model.NewConversation(nil)
//	if err != nil {
//		return err
//	}
//	for piece, err := range chat.Ask(ctx, "What does `Vec::push` do?", nil).Text() {
//		if err != nil {
//			return err
//		}
//		fmt.Print(piece)
//	}
//
// This program loads with progress, streams an answer, stops another, ranks three texts, trains an adapter for 20 steps and asks with it:
//
//	go run . ../../models/tiny-coder ../../models/tiny-embed ../../examples/data/facts.jsonl
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"example.com/metal-candle/go"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: tour MODEL EMBEDDER EXAMPLES.jsonl")
		os.Exit(2)
	}
	if err := tour(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "tour:", err)
		os.Exit(1)
	}
}

func tour(modelPath, embedderPath, examples string) error {
	ctx := context.Background()
	model, err := metalcandle.Load(ctx, modelPath, &metalcandle.LoadOptions{Progress: func(p metalcandle.Progress) error {
		fmt.Fprintf(os.Stderr, "\rloading %.0f %%", 100*p.Fraction())
		return nil
	}})
	if err != nil {
		return err
	}
	defer model.Close()
	fmt.Fprintln(os.Stderr)

	if err := ask(ctx, model, "What does `Vec::push` do?", 0); err != nil {
		return err
	}
	if err := ask(ctx, model, "What does `Vec::push` do?", 2); err != nil {
		return err
	}
	if err := rank(ctx, embedderPath); err != nil {
		return err
	}
	adapter, err := train(ctx, model, examples)
	if err != nil {
		return err
	}
	defer adapter.Close()
	return ask(ctx, model, "What is the bird of Velmora?", 0, adapter.Scaled(1))
}

// ask streams an answer. After stopAfter tokens, unless that is 0, its context is cancelled, as another goroutine would.
func ask(ctx context.Context, model *metalcandle.Model, question string, stopAfter int, adapters ...metalcandle.ScaledAdapter) error {
	chat, err := model.NewConversation(&metalcandle.ConversationOptions{Adapters: adapters})
	if err != nil {
		return err
	}
	defer chat.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	options := &metalcandle.GenerateOptions{Temperature: metalcandle.Ptr[float64](0), MaxTokens: 64}
	for token, err := range chat.Ask(ctx, question, options).Tokens() {
		if errors.Is(err, context.Canceled) {
			fmt.Print(" [stopped]")
			break
		}
		if err != nil {
			return err
		}
		fmt.Print(token.Text)
		if token.Index+1 == stopAfter {
			stop()
		}
	}
	fmt.Println()
	return nil
}

func rank(ctx context.Context, path string) error {
	embedder, err := metalcandle.Load(ctx, path, nil)
	if err != nil {
		return err
	}
	defer embedder.Close()
	texts := []string{"open a file for reading", "add an element to a vector", "sleep for one second"}
	hits, err := embedder.Rank(ctx, "push onto a Vec", texts)
	for _, hit := range hits {
		fmt.Printf("%.3f  %s\n", hit.Score, texts[hit.Index])
	}
	return err
}

func train(ctx context.Context, model *metalcandle.Model, examples string) (*metalcandle.Adapter, error) {
	data, err := metalcandle.LoadDataset(examples)
	if err != nil {
		return nil, err
	}
	defer data.Close()
	trainer, err := model.NewTrainer(nil, &metalcandle.TrainOptions{LearningRate: metalcandle.Ptr[float64](5e-3), Schedule: metalcandle.ScheduleCosine, BatchSize: 15, Epochs: 10, TotalSteps: 20})
	if err != nil {
		return nil, err
	}
	defer trainer.Close()
	for step, err := range trainer.Steps(ctx, data, nil) {
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(os.Stderr, "\rstep %d/%d, loss %.3f", step.Step, step.TotalSteps, step.Loss)
	}
	fmt.Fprintln(os.Stderr)
	return trainer.Adapter()
}
