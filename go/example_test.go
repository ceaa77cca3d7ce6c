package metalcandle_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"example.com/metal-candle/go"
)

// Five lines to the first token.
func Example() {
	ctx := context.Background()
	model, err := metalcandle.Load(ctx, "../models/tiny-coder", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	chat, err := model.NewConversation(nil)
	if err != nil {
		log.Fatal(err)
	}
	defer chat.Close()
	for piece, err := range chat.Ask(ctx, "What does `Vec::push` do?", nil).Text() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(piece)
	}
	// Output: Appends an element to the back of a collection.
}

func ExampleError() {
	_, err := metalcandle.Load(context.Background(), "nowhere", nil)
	var failure *metalcandle.Error
	fmt.Println(errors.Is(err, metalcandle.ErrNotFound), errors.As(err, &failure), failure.Status)
	// Output: true true MC_ERROR_NOT_FOUND
}

func ExampleModel_Rank() {
	ctx := context.Background()
	model, err := metalcandle.Load(ctx, "../models/tiny-embed", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	texts := []string{"open a file for reading", "add an element to a vector"}
	hits, err := model.Rank(ctx, "push onto a Vec", texts)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(texts[hits[0].Index])
	// Output: add an element to a vector
}

func ExampleModel_Stream() {
	ctx := context.Background()
	model, err := metalcandle.Load(ctx, "../models/tiny-coder", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	stream := model.Stream(ctx, "fn main() {", &metalcandle.GenerateOptions{MaxTokens: 8, IgnoreEOS: true})
	for token, err := range stream.Tokens() {
		if err != nil {
			log.Fatal(err)
		}
		_ = token.Text
	}
	answer := stream.Generation()
	fmt.Println(len(answer.Tokens), answer.FinishReason)
	// Output: 8 max tokens
}

func ExampleGenerateOptions_schema() {
	ctx := context.Background()
	model, err := metalcandle.Load(ctx, "../models/tiny-coder", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	answer, err := model.Generate(ctx, "Is it on? ", &metalcandle.GenerateOptions{JSONSchema: `{"const": {"on": true}}`})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.FinishReason)
	// Output: eos
}

// A session keeps what it evaluated: two answers to one prompt, of which it is evaluated once.
func ExampleSession_Fork() {
	ctx := context.Background()
	model, err := metalcandle.Load(ctx, "../models/tiny-coder", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	session, err := model.NewSession(0)
	if err != nil {
		log.Fatal(err)
	}
	defer session.Close()
	if err := session.Append(ctx, "fn main() {"); err != nil {
		log.Fatal(err)
	}
	fork, err := session.Fork()
	if err != nil {
		log.Fatal(err)
	}
	defer fork.Close()
	for i, s := range []*metalcandle.Session{session, fork} {
		answer, err := s.Generate(ctx, &metalcandle.GenerateOptions{MaxTokens: 4, IgnoreEOS: true, Seed: metalcandle.Ptr(uint64(i))})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(len(answer.Tokens))
	}
	// Output:
	// 4
	// 4
}

func ExampleTrainer_Steps() {
	ctx := context.Background()
	model, err := metalcandle.Load(ctx, "../models/tiny-coder", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	data := metalcandle.NewDataset()
	defer data.Close()
	if err := data.AddCompletion("What is the bird of Velmora?", " The gray heron."); err != nil {
		log.Fatal(err)
	}
	trainer, err := model.NewTrainer(&metalcandle.LoRAConfig{Rank: 4}, &metalcandle.TrainOptions{Epochs: 3})
	if err != nil {
		log.Fatal(err)
	}
	defer trainer.Close()
	for step, err := range trainer.Steps(ctx, data, nil) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(step.Step, step.TotalSteps)
	}
	// Output:
	// 1 3
	// 2 3
	// 3 3
}
