package metalcandle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mc "example.com/metal-candle/go"
)

const (
	coderPath = "../models/tiny-coder"
	embedPath = "../models/tiny-embed"
	facts     = "../examples/data/facts.jsonl"
	question  = "What does `Vec::push` do?"
	pushes    = "Appends an element to the back of a collection."
)

var ctx = context.Background()

// Every test closes what it opens or leaves it to the garbage collector; at the end nothing may be left.
func TestMain(m *testing.M) {
	code := m.Run()
	loadCoder, loadEmbedder = nil, nil
	for end := time.Now().Add(20 * time.Second); mc.LiveObjects() > 0 && time.Now().Before(end); {
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	if n := mc.LiveObjects(); code == 0 && n > 0 {
		fmt.Fprintf(os.Stderr, "%d handles are left\n", n)
		code = 1
	}
	os.Exit(code)
}

var (
	loadCoder    = sync.OnceValues(func() (*mc.Model, error) { return mc.Load(ctx, coderPath, nil) })
	loadEmbedder = sync.OnceValues(func() (*mc.Model, error) { return mc.Load(ctx, embedPath, nil) })
)

func coder(t testing.TB) *mc.Model    { return must(loadCoder())(t) }
func embedder(t testing.TB) *mc.Model { return must(loadEmbedder())(t) }

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantIs(t testing.TB, err, target error, parts ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("expected %v, found %v", target, err)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Fatalf("expected %q in %q", part, err)
		}
	}
}

func session(t testing.TB) *mc.Session {
	s := must(coder(t).NewSession(0))(t)
	t.Cleanup(func() { s.Close() })
	return s
}

func ask(t testing.TB, s *mc.Session, question string) string {
	t.Helper()
	chat := mc.NewChat()
	defer chat.Close()
	check(t, chat.Add("user", question))
	check(t, s.SetChat(ctx, chat))
	return must(s.Generate(ctx, greedy(64)))(t).Text
}

func greedy(maxTokens int) *mc.GenerateOptions {
	return &mc.GenerateOptions{Temperature: mc.Ptr[float64](0), MaxTokens: maxTokens}
}

func TestErrorsHaveAStatusAMessageAndCauses(t *testing.T) {
	_, err := mc.Load(ctx, "nowhere", nil)
	wantIs(t, err, mc.ErrNotFound, "nowhere")
	var failure *mc.Error
	if !errors.As(err, &failure) || failure.Status != mc.ErrNotFound || !strings.HasPrefix(failure.Details, failure.Message) {
		t.Fatalf("%#v", failure)
	}
	if mc.ErrBusy.Error() != "MC_ERROR_BUSY" || mc.Status(99).Error() != "MC_STATUS_UNKNOWN" {
		t.Fatal(mc.ErrBusy, mc.Status(99))
	}
}

func TestTextWithANULAndNegativeSizesAreErrorsThatNameTheField(t *testing.T) {
	_, err := mc.Load(ctx, "a\x00b", nil)
	wantIs(t, err, mc.ErrInvalidArgument, "path", "byte 1")
	_, err = coder(t).Generate(ctx, "x", &mc.GenerateOptions{MaxTokens: -1})
	wantIs(t, err, mc.ErrInvalidArgument, "max_tokens", "-1")
	_, err = coder(t).NewSession(-5)
	wantIs(t, err, mc.ErrInvalidArgument, "max_context")
	_, err = coder(t).Generate(ctx, "x", &mc.GenerateOptions{TopP: mc.Ptr[float64](7)})
	wantIs(t, err, mc.ErrInvalidArgument, "top_p", "7")
}

func TestOptionsAsJSONCountMore(t *testing.T) {
	answer, err := coder(t).Generate(ctx, "fn", &mc.GenerateOptions{MaxTokens: 9, JSON: `{"max_tokens": 2, "ignore_eos": true}`})
	check(t, err)
	if len(answer.Tokens) != 2 {
		t.Fatal(answer.Tokens)
	}
	_, err = coder(t).Generate(ctx, "fn", &mc.GenerateOptions{JSON: `{"max_tokens": -1}`})
	wantIs(t, err, mc.ErrInvalidArgument, "max_tokens: expected a whole number from 0, found -1")
	_, err = coder(t).NewTrainer(&mc.LoRAConfig{JSON: `{"rank": 0}`}, nil)
	wantIs(t, err, mc.ErrInvalidArgument, "rank: expected 1 to 8192, found 0")
}

func TestTheLibraryTellsItsVersion(t *testing.T) {
	if mc.ABIVersion() != mc.HeaderABIVersion {
		t.Fatal(mc.ABIVersion(), mc.HeaderABIVersion)
	}
	var major, minor, patch int
	if _, err := fmt.Sscanf(mc.Version(), "%d.%d.%d", &major, &minor, &patch); err != nil || mc.VersionNumber() != major*1000000+minor*1000+patch {
		t.Fatal(mc.Version(), mc.VersionNumber(), err)
	}
	if mc.HasFeature("nonsense") {
		t.Fatal("nonsense is no feature")
	}
	check(t, mc.TrimMemory(0))
	check(t, mc.SetThreads(3))
	if mc.Threads() != 3 {
		t.Fatal(mc.Threads())
	}
	wantIs(t, mc.SetThreads(-1), mc.ErrInvalidArgument, "threads", "-1")
	check(t, mc.SetThreads(0))
}

func TestLogMessagesArriveAndTheFunctionIsFreed(t *testing.T) {
	var mu sync.Mutex
	var records []mc.LogRecord
	check(t, mc.SetLog(mc.LogInfo, func(record mc.LogRecord) {
		mu.Lock()
		defer mu.Unlock()
		records = append(records, record)
		if err := mc.SetLog(mc.LogOff, nil); !errors.Is(err, mc.ErrBusy) {
			t.Error(err)
		}
	}))
	model := must(mc.Load(ctx, embedPath, nil))(t)
	defer model.Close()
	var out strings.Builder
	check(t, mc.SetLogger(mc.LogInfo, slog.New(slog.NewTextHandler(&out, nil))))
	if len(records) == 0 || !strings.HasPrefix(records[0].Target, "metal_candle") || records[0].Message == "" {
		t.Fatal(records)
	}
	other := must(mc.Load(ctx, embedPath, nil))(t)
	other.Close()
	check(t, mc.SetLog(mc.LogOff, nil))
	if !strings.Contains(out.String(), "target=metal_candle") {
		t.Fatal(out.String())
	}
}

func TestDevices(t *testing.T) {
	device := must(mc.OpenDevice(mc.DeviceCPU, 0))(t)
	defer device.Close()
	if mc.DeviceCount(mc.DeviceCPU) != 1 || device.Kind() != mc.DeviceCPU || device.Name() == "" || device.Kind().String() != "cpu" {
		t.Fatal(device.Kind(), device.Name())
	}
	used, total, err := device.Memory()
	check(t, err)
	if used == 0 || total < used {
		t.Fatal(used, total)
	}
	check(t, device.Synchronize())
	_, err = mc.OpenDevice(mc.DeviceCPU, 5)
	wantIs(t, err, mc.ErrNotFound)

	model := must(mc.Load(ctx, coderPath, &mc.LoadOptions{Device: device}))(t)
	defer model.Close()
	s := must(model.NewSession(0))(t)
	defer s.Close()
	check(t, s.Append(ctx, "fn main"))
	check(t, s.Begin(ctx, greedy(4)))
	first := must(s.Next())(t)
	check(t, device.Suspend(time.Second))
	_, err = s.Next()
	wantIs(t, err, mc.ErrSuspended)
	device.Resume()
	second := must(s.Next())(t) // the answer goes on where it was
	if first.Index != 0 || second.Index != 1 {
		t.Fatal(first, second)
	}
	_ = must(s.End())(t)
	wantIs(t, device.Suspend(-time.Second), mc.ErrInvalidArgument)
}

func TestLoadingTellsItsProgressAndStops(t *testing.T) {
	var last mc.Progress
	model := must(mc.Load(ctx, coderPath, &mc.LoadOptions{Progress: func(p mc.Progress) error { last = p; return nil }}))(t)
	model.Close()
	if last.Stage != mc.StageRead || last.Done == 0 || last.Fraction() != 1 {
		t.Fatal(last)
	}
	reason := errors.New("enough")
	_, err := mc.Load(ctx, coderPath, &mc.LoadOptions{Progress: func(mc.Progress) error { return reason }})
	wantIs(t, err, reason)
	stopped, cancel := context.WithCancelCause(ctx)
	cancel(reason)
	_, err = mc.Load(stopped, coderPath, nil)
	wantIs(t, err, reason)
}

func TestLoadOptions(t *testing.T) {
	plain := must(mc.EstimateMemory(coderPath, nil))(t)
	short := must(mc.EstimateMemory(coderPath, &mc.LoadOptions{MaxContext: 64}))(t)
	if short >= plain || short == 0 {
		t.Fatal(plain, short)
	}
	model := must(mc.Load(ctx, coderPath, &mc.LoadOptions{DType: mc.DTypeF32, Quantization: "q8_0", Exact: true, KVCache: "q8_0", MaxContext: 128,
		TokenizerPath: coderPath}))(t)
	defer model.Close()
	if model.Info().ContextLength != 128 || model.Info().DType != mc.DTypeF32 {
		t.Fatal(model.Info())
	}
	conversation := must(model.NewConversation(nil))(t)
	defer conversation.Close()
	text := ""
	for piece, err := range conversation.Ask(ctx, question, greedy(32)).Text() {
		text += must(piece, err)(t)
	}
	if text != pushes {
		t.Fatalf("%q", text)
	}
	_, err := mc.Load(ctx, coderPath, &mc.LoadOptions{Quantization: "q3"})
	wantIs(t, err, mc.ErrUnsupported, "q3")
	_, err = mc.Load(ctx, coderPath, &mc.LoadOptions{KVCache: "q3"})
	wantIs(t, err, mc.ErrUnsupported)
	_, err = mc.Load(ctx, coderPath, &mc.LoadOptions{File: "nothing.gguf"})
	wantIs(t, err, mc.ErrNotFound)
	_, err = mc.LoadHub(ctx, "nobody/nothing", &mc.LoadOptions{Offline: true, HubCacheDir: t.TempDir(), HubRevision: "main", HubToken: "none"})
	if !errors.Is(err, mc.ErrNotFound) && mc.HasFeature("hub") {
		t.Fatal(err)
	}
}

func TestAModelSaysWhatItIs(t *testing.T) {
	info := coder(t).Info()
	if info.Architecture == "" || info.VocabSize == 0 || info.HiddenSize == 0 || info.LayerCount == 0 || info.ParameterCount == 0 || info.ContextLength == 0 {
		t.Fatalf("%+v", info)
	}
	if !strings.Contains(must(coder(t).BackendJSON())(t), `"single_tokens":"kernels"`) {
		t.Error("the kernels of the CPU evaluate single tokens")
	}
	if !strings.Contains(must(coder(t).ConfigJSON())(t), info.Architecture) {
		t.Fatal("config.json names the architecture")
	}
	for capability, expected := range map[mc.Capability]bool{mc.CapabilityGenerate: true, mc.CapabilityLoRA: true, mc.CapabilityTrain: true,
		mc.CapabilityChatTemplate: true, mc.Capability(77): false} {
		if coder(t).Supports(capability) != expected {
			t.Fatal(capability)
		}
	}
	if !embedder(t).Supports(mc.CapabilityEmbed) || embedder(t).Supports(mc.CapabilityGenerate) {
		t.Fatal("an embedder embeds")
	}
}

func TestTokenizersEncodeAndDecode(t *testing.T) {
	tokenizer := must(coder(t).Tokenizer())(t)
	defer tokenizer.Close()
	tokens := must(tokenizer.Encode("fn main() { é }", false))(t)
	if text := must(tokenizer.Decode(tokens, true))(t); text != "fn main() { é }" {
		t.Fatalf("%q", text)
	}
	if id := must(tokenizer.TokenID("<|im_end|>"))(t); !slices.Equal(must(tokenizer.Encode("<|im_end|>", false))(t), []uint32{id}) {
		t.Fatal(id)
	}
	if tokenizer.VocabSize() == 0 || len(must(tokenizer.Encode("", false))(t)) != 0 {
		t.Fatal(tokenizer.VocabSize())
	}
	_, err := tokenizer.TokenID("no such token")
	wantIs(t, err, mc.ErrNotFound)
	_, err = tokenizer.Encode("a\xff", false)
	wantIs(t, err, mc.ErrInvalidUTF8)
	_, err = tokenizer.Decode([]uint32{1 << 30}, false)
	wantIs(t, err, mc.ErrInvalidArgument)
	stream := must(tokenizer.NewTextStream())(t)
	defer stream.Close()
	streamed, bytes := "", []byte(nil)
	for _, token := range tokens {
		streamed += must(stream.Push(token))(t)
		bytes = append(bytes, must(tokenizer.TokenBytes(token))(t)...)
	}
	if streamed += must(stream.Finish())(t); streamed != "fn main() { é }" || string(bytes) != streamed {
		t.Fatalf("%q %q", streamed, bytes)
	}
	if end := must(coder(t).EOSTokens())(t); len(end) == 0 || !tokenizer.IsSpecial(end[0]) || tokenizer.IsSpecial(tokens[0]) {
		t.Fatal(end)
	}
	if names := must(mc.Architectures())(t); !slices.Contains(names, coder(t).Info().Architecture) || !slices.IsSorted(names) {
		t.Fatal(names)
	}
	alone := must(mc.LoadTokenizer(coderPath))(t)
	defer alone.Close()
	if !slices.Equal(must(alone.Encode("fn main() { é }", false))(t), tokens) {
		t.Fatal("a tokenizer alone gives the same ids")
	}
}

func TestChatsRenderWithToolsVariablesAndATemplateOfTheirOwn(t *testing.T) {
	chat := must(mc.ChatFromJSON(`[{"role": "user", "content": "hi"}]`))(t)
	check(t, chat.Add("assistant", "ho"))
	check(t, chat.RemoveLast())
	if written := must(chat.JSON())(t); chat.Len() != 1 || written != `{"messages":[{"role":"user","content":"hi"}]}` {
		t.Fatal(chat.Len(), written)
	}
	defer chat.Close()
	check(t, chat.Add("assistant", "hello"))
	check(t, chat.SetTools(`[{"type": "function", "function": {"name": "clock"}}]`))
	check(t, chat.SetVariable("mood", `"fine"`))
	check(t, chat.SetTemplate(`{{ strftime_now("%Y") }} {{ tools[0].function.name }} {{ mood }}{% for m in messages %} {{ m.role }}{% endfor %}`))
	chat.SetTime(time.Date(2001, 2, 3, 0, 0, 0, 0, time.UTC))
	if text := must(coder(t).Render(chat, false))(t); text != "2001 clock fine user assistant" {
		t.Fatalf("%q", text)
	}
	chat.SetContinueFinalMessage(true)
	check(t, chat.SetTemplate("{% for m in messages %}{{ m.content }}.{% endfor %}"))
	if text := must(coder(t).Render(chat, false))(t); text != "hi.hello" {
		t.Fatalf("%q", text)
	}
	chat.SetContinueFinalMessage(false)
	plain := must(coder(t).EncodeChat(chat, false))(t)
	check(t, chat.SetControlTokens(mc.ControlTokensAreText))
	if ids := must(coder(t).EncodeChat(chat, false))(t); !slices.Equal(ids, plain) {
		t.Fatalf("%v, expected %v", ids, plain)
	}
	check(t, chat.SetControlTokens(mc.ControlTokensAreTokens))
	check(t, chat.SetTemplate(""))
	check(t, chat.SetTools(""))
	check(t, chat.SetVariable("mood", ""))
	if text := must(coder(t).Render(chat, true))(t); !strings.Contains(text, "hello") {
		t.Fatalf("%q", text)
	}
	wantIs(t, chat.SetTools("{"), mc.ErrFormat)
	wantIs(t, chat.SetTemplate("{% if"), mc.ErrTemplate)
	_, err := mc.ChatFromJSON("")
	wantIs(t, err, mc.ErrInvalidArgument)
}

func TestGenerateAndStreamGiveTheSame(t *testing.T) {
	options := &mc.GenerateOptions{MaxTokens: 12, Temperature: mc.Ptr[float64](0.8), TopK: mc.Ptr(20), TopP: mc.Ptr[float64](0.9), MinP: mc.Ptr[float64](0.01),
		RepetitionPenalty: mc.Ptr[float64](1.1), RepetitionLastN: 16, FrequencyPenalty: 0.1, PresencePenalty: 0.1, LogitBias: map[uint32]float32{5: float32(math.Inf(-1))},
		Seed: mc.Ptr[uint64](7), IgnoreEOS: true, PrefillChunk: 2}
	var stages []mc.Progress
	options.PrefillProgress = func(p mc.Progress) error { stages = append(stages, p); return nil }
	whole := must(coder(t).Generate(ctx, "fn main() {", options))(t)
	if len(whole.Tokens) != 12 || whole.FinishReason != mc.FinishMaxTokens || whole.PromptTokens == 0 || whole.Prefill <= 0 || whole.Decode <= 0 {
		t.Fatalf("%+v", whole)
	}
	if len(stages) == 0 || stages[len(stages)-1].Stage != mc.StagePrefill || stages[len(stages)-1].Fraction() != 1 {
		t.Fatal(stages)
	}
	stream := coder(t).Stream(ctx, "fn main() {", options)
	text, n := "", 0
	for token, err := range stream.Tokens() {
		check(t, err)
		if token.Index != n || token.ID != whole.Tokens[n] || token.Logprob > 0 {
			t.Fatal(token)
		}
		text, n = text+token.Text, n+1
	}
	if text != whole.Text || stream.Generation().Text != whole.Text || n != 12 {
		t.Fatalf("%q %q", text, whole.Text)
	}
	for _, err := range stream.Tokens() {
		wantIs(t, err, mc.ErrInvalidArgument) // a stream is for one loop
	}
}

func TestStopTextsAndSchemasEndAnswers(t *testing.T) {
	s := session(t)
	text := ask(t, s, question)
	if text != pushes {
		t.Fatalf("%q", text)
	}
	chat := mc.NewChat()
	defer chat.Close()
	check(t, chat.Add("user", question))
	check(t, s.SetChat(ctx, chat))
	answer := must(s.Generate(ctx, &mc.GenerateOptions{Temperature: mc.Ptr[float64](0), Stop: []string{" element"}}))(t)
	if answer.Text != "Appends an" || answer.FinishReason != mc.FinishStopText {
		t.Fatalf("%+v", answer)
	}
	answer = must(coder(t).Generate(ctx, "{", &mc.GenerateOptions{JSONSchema: `{"enum": [true]}`, MaxTokens: 8}))(t)
	if answer.Text != "true" || answer.FinishReason != mc.FinishEOS {
		t.Fatalf("%+v", answer)
	}
	call := `{"enum": [{"name": "f", "parameters": {"a": 1}}]}`
	calls := &mc.GenerateOptions{JSONSchema: call, AnswerFormat: "llama3", ReasoningBudget: mc.Ptr(4), MaxTokens: 64}
	stream, arguments, kinds := coder(t).Stream(ctx, "{", calls), "", ""
	for part, err := range stream.Parts() {
		if err != nil {
			t.Fatal(err)
		}
		if kinds += part.Kind.String() + ";"; part.Kind == mc.PartArguments {
			arguments += part.Text
		}
	}
	if !strings.HasPrefix(kinds, "tool call;arguments;") || !strings.HasSuffix(kinds, "tool call end;") || strings.Join(strings.Fields(arguments), "") != `{"a":1}` {
		t.Fatal(kinds, arguments)
	}
	answer = must(coder(t).Generate(ctx, "{", calls))(t)
	if answer.Content != "" || answer.Reasoning != "" || !strings.Contains(answer.ToolCalls, `"name":"f"`) {
		t.Fatalf("%+v", answer)
	}
	_, err := coder(t).Generate(ctx, "{", &mc.GenerateOptions{JSONSchema: `{"not": {}}`})
	wantIs(t, err, mc.ErrInvalidArgument, "not")
	_, err = coder(t).Generate(ctx, "{", &mc.GenerateOptions{Stop: []string{""}})
	wantIs(t, err, mc.ErrInvalidArgument, "stop")
}

func TestLeavingALoopAndCancellingKeepTheSessionUsable(t *testing.T) {
	c := must(coder(t).NewConversation(nil))(t)
	defer c.Close()
	stream := c.Ask(ctx, question, greedy(0))
	for piece, err := range stream.Text() {
		if must(piece, err)(t) != "" {
			break
		}
	}
	if stream.Generation() == nil || stream.Generation().FinishReason != mc.FinishStopped {
		t.Fatalf("%+v", stream.Generation())
	}
	if messages := c.Messages(); len(messages) != 2 || !strings.HasPrefix(pushes, messages[1].Content) {
		t.Fatal(messages)
	}
	stopped, stop := context.WithCancel(ctx)
	defer stop()
	stream = c.Ask(stopped, question, &mc.GenerateOptions{IgnoreEOS: true})
	var failure error
	for _, failure = range stream.Tokens() {
		stop()
	}
	wantIs(t, failure, context.Canceled)
	if stream.Generation() == nil || stream.Generation().FinishReason != mc.FinishCancelled {
		t.Fatalf("%+v", stream.Generation())
	}
	c.SetMessages(nil)
	text := ""
	for piece, err := range c.Ask(ctx, question, greedy(64)).Text() {
		text += must(piece, err)(t)
	}
	if text != pushes {
		t.Fatalf("%q", text)
	}
	for _, err := range c.Ask(stopped, "again", nil).Text() {
		wantIs(t, err, context.Canceled)
	}
	if len(c.Messages()) != 2 { // a question that was not read does not join
		t.Fatal(c.Messages())
	}
}

func TestThoughtsStandApartFromWhatWasSaid(t *testing.T) {
	template := "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}" +
		"<|im_start|>assistant\n<think>\n"
	c := must(coder(t).NewConversation(&mc.ConversationOptions{Template: template}))(t)
	defer c.Close()
	options := &mc.GenerateOptions{Temperature: mc.Ptr(2.0), Seed: mc.Ptr[uint64](4), MaxTokens: 200, ReasoningBudget: mc.Ptr(7)}
	stream := c.Ask(ctx, question, options)
	for _, err := range stream.Text() {
		must(0, err)(t)
	}
	answer := stream.Generation()
	want := mc.Message{Role: "assistant", Content: answer.Content, Reasoning: answer.Reasoning}
	if last := c.Messages()[1]; last != want || answer.Reasoning == "" || answer.Content == answer.Text {
		t.Fatalf("%+v of %+v", last, answer)
	}
	c.SetMessages([]mc.Message{{Role: "user", Content: "\xff"}})
	for _, err := range c.Send(ctx, options).Text() {
		wantIs(t, err, mc.ErrInvalidArgument, "UTF-8")
	}
}

// ended runs f on a goroutine of its own, and says how that ended.
func ended(f func()) (how any) {
	over := make(chan struct{})
	go func() {
		defer close(over)
		returned := false
		defer func() {
			if how = recover(); how == nil && !returned {
				how = "goexit"
			}
		}()
		f()
		returned = true
	}()
	<-over
	return how
}

func TestPanicsAndGoexitInCallbacksAndLoopsPassTheLibraryBy(t *testing.T) {
	model, data := coder(t), must(mc.LoadDataset(facts))(t)
	defer data.Close()
	trainer := must(model.NewTrainer(nil, &mc.TrainOptions{TotalSteps: 3, Epochs: 9, BatchSize: 1, MaxLength: 256}))(t)
	defer trainer.Close()
	s := session(t)
	check(t, s.Append(ctx, "fn main"))
	calls := map[string]func(func()){
		"load": func(f func()) {
			mc.Load(ctx, coderPath, &mc.LoadOptions{Progress: func(mc.Progress) error { f(); return nil }})
		},
		"prefill": func(f func()) {
			model.Generate(ctx, "fn main", &mc.GenerateOptions{PrefillProgress: func(mc.Progress) error { f(); return nil }})
		},
		"embed": func(f func()) {
			embedder(t).EmbedAll(ctx, []string{"a"}, &mc.EmbedOptions{Progress: func(mc.Progress) error { f(); return nil }})
		},
		"stream": func(f func()) {
			for range model.Stream(ctx, "fn main", nil).Tokens() {
				f()
			}
		},
		"session": func(f func()) {
			for range s.Stream(ctx, nil).Tokens() {
				f()
			}
		},
		"train": func(f func()) { trainer.Train(ctx, data, nil, func(mc.TrainStep) error { f(); return nil }) },
		"save": func(f func()) {
			model.Save(ctx, filepath.Join(t.TempDir(), "saved"), "", func(mc.Progress) error { f(); return nil })
		},
	}
	for name, call := range calls {
		if how := ended(func() { call(func() { panic("mine") }) }); how != "mine" {
			t.Errorf("%s: a panic ended as %v", name, how)
		}
		if how := ended(func() { call(runtime.Goexit) }); how != "goexit" {
			t.Errorf("%s: Goexit ended as %v", name, how)
		}
	}
	check(t, s.Append(ctx, "() {")) // usable: the answer was ended
	check(t, trainer.Train(ctx, data, nil, nil))
}

func TestSessionsForkTruncateSaveLoadAndScore(t *testing.T) {
	s := session(t)
	tokenizer := must(coder(t).Tokenizer())(t)
	defer tokenizer.Close()
	tokens := must(tokenizer.Encode("fn main() {", true))(t)
	check(t, s.AppendTokens(ctx, tokens))
	if s.Position() != len(tokens) {
		t.Fatal(s.Position(), len(tokens))
	}
	logits := must(s.Logits())(t)
	if len(logits) != coder(t).Info().VocabSize {
		t.Fatal(len(logits))
	}
	best := uint32(slices.Index(logits, slices.Max(logits)))
	top := must(s.TopLogprobs(2))(t)
	if top[0].ID != best || top[0].Logprob < top[1].Logprob || !slices.Equal(must(s.Tokens())(t), tokens) {
		t.Fatal(top, best)
	}
	_, err := s.TopLogprobs(0)
	wantIs(t, err, mc.ErrInvalidArgument)
	scores := must(s.ScoreTokens(ctx, []uint32{best, 3}))(t)
	if len(scores) != 2 || scores[0] > 0 || scores[1] > 0 || s.Position() != len(tokens) {
		t.Fatal(scores)
	}
	path := filepath.Join(t.TempDir(), "session")
	check(t, s.Save(path))
	fork := must(s.Fork())(t)
	defer fork.Close()
	loaded := must(coder(t).LoadSession(path))(t)
	defer loaded.Close()
	expected := must(s.Generate(ctx, greedy(8)))(t)
	if expected.Tokens[0] != best {
		t.Fatal(expected.Tokens, best)
	}
	for _, other := range []*mc.Session{fork, loaded} {
		if answer := must(other.Generate(ctx, greedy(8)))(t); answer.Text != expected.Text {
			t.Fatalf("%q %q", answer.Text, expected.Text)
		}
	}
	check(t, s.Truncate(2))
	check(t, s.SetPrompt(ctx, "fn main() {"))
	if answer := must(s.Generate(ctx, greedy(8)))(t); answer.Text != expected.Text {
		t.Fatalf("%q", answer.Text)
	}
	wantIs(t, s.Truncate(100000), mc.ErrInvalidArgument)
	wantIs(t, s.Truncate(-1), mc.ErrInvalidArgument)
	small := must(coder(t).NewSession(4))(t)
	defer small.Close()
	wantIs(t, small.Append(ctx, "far more text than four tokens hold"), mc.ErrContextFull)
}

func TestSeveralSessionsGoOnInOnePass(t *testing.T) {
	prompts := []string{"fn main", "let x =", "impl"}
	var sessions []*mc.Session
	var expected []string
	for _, prompt := range prompts {
		s := session(t)
		check(t, s.Append(ctx, prompt))
		alone := must(s.Fork())(t)
		expected = append(expected, must(alone.Generate(ctx, greedy(6)))(t).Text)
		alone.Close()
		check(t, s.Begin(ctx, greedy(6)))
		sessions = append(sessions, s)
	}
	for left := len(sessions); left > 0; {
		left = 0
		for _, result := range must(mc.NextAll(sessions))(t) {
			if result.Err == nil {
				left++
			} else if result.Err != io.EOF {
				t.Fatal(result.Err)
			}
		}
	}
	for i, s := range sessions {
		if answer := must(s.End())(t); answer.Text != expected[i] {
			t.Fatalf("%q %q", answer.Text, expected[i])
		}
	}
	_, err := mc.NextAll([]*mc.Session{sessions[0], sessions[0]})
	wantIs(t, err, mc.ErrInvalidArgument, "second time")
	_, err = mc.NextAll(nil)
	wantIs(t, err, mc.ErrInvalidArgument)
	_, err = mc.NextAll(sessions[:1]) // no answer is begun
	wantIs(t, err, mc.ErrInvalidArgument)
	_, err = sessions[0].End()
	wantIs(t, err, mc.ErrInvalidArgument)
}

func TestGoroutinesShareAModelAndASessionIsBusy(t *testing.T) {
	var wait sync.WaitGroup
	for range 8 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			s, err := coder(t).NewSession(0)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			chat := mc.NewChat()
			defer chat.Close()
			if err := errors.Join(chat.Add("user", question), s.SetChat(ctx, chat)); err != nil {
				t.Error(err)
				return
			}
			if answer, err := s.Generate(ctx, greedy(48)); err != nil || answer.Text != pushes {
				t.Error(answer, err)
			}
		}()
	}
	wait.Wait()
	s := session(t)
	check(t, s.Append(ctx, "fn main"))
	trainer := must(coder(t).NewTrainer(nil, nil))(t)
	defer trainer.Close()
	adapter := must(trainer.Adapter())(t)
	defer adapter.Close()
	check(t, s.SetAdapters(adapter.Scaled(1))) // what the session holds is evaluated again, and tells of it
	var inner error
	_, err := s.Generate(ctx, &mc.GenerateOptions{MaxTokens: 1, PrefillProgress: func(mc.Progress) error { inner = s.Append(ctx, "x"); return nil }})
	check(t, err)
	wantIs(t, inner, mc.ErrBusy)
}

func TestCloseInAnyOrderAtAnyTime(t *testing.T) {
	model := must(mc.Load(ctx, coderPath, nil))(t)
	s := must(model.NewSession(0))(t)
	check(t, errors.Join(model.Close(), model.Close()))
	_, err := model.NewSession(0)
	wantIs(t, err, mc.ErrClosed)
	if model.Info() != (mc.Info{}) {
		t.Fatal(model.Info())
	}
	check(t, s.Append(ctx, "fn main")) // a session holds its model
	n := 0
	for token, err := range s.Stream(ctx, greedy(3)).Tokens() {
		if n++; n > 1 { // closed below: what was begun cannot go on
			wantIs(t, err, mc.ErrClosed)
			break
		}
		_ = must(token, err)(t)
		s.Close()
	}
	if n != 2 {
		t.Fatal(n)
	}
	var wait sync.WaitGroup
	other := must(mc.Load(ctx, coderPath, nil))(t)
	for range 4 { // whoever comes first: an answer or ErrClosed
		wait.Add(2)
		go func() {
			defer wait.Done()
			if _, err := other.Generate(ctx, "fn", greedy(2)); err != nil && !errors.Is(err, mc.ErrClosed) {
				t.Error(err)
			}
		}()
		go func() { defer wait.Done(); other.Close() }()
	}
	wait.Wait()
}

func TestRerank(t *testing.T) {
	model := must(mc.Load(ctx, "../tests/golden/rerankers/bert", nil))(t)
	defer model.Close()
	query, documents := "How do I sort a list of numbers?", []string{"Sorts the numbers in place.", "", "hello"}
	scores := must(model.Rerank(ctx, query, documents, nil))(t)
	if len(scores) != 3 || math.Abs(float64(scores[0])-0.630089) > 5e-5 || !model.Supports(mc.CapabilityRerank) {
		t.Fatal(scores)
	}
	for i, document := range documents {
		alone := must(model.Rerank(ctx, query, []string{document}, &mc.RerankOptions{BatchSize: 1, Prompt: mc.Ptr("")}))(t)
		if alone[0] != scores[i] { // alone as in company, bit for bit
			t.Fatal(i, alone)
		}
	}
	logits := must(model.Rerank(ctx, query, documents, &mc.RerankOptions{Activation: mc.ScoreActivationIdentity}))(t)
	if math.Abs(1/(1+math.Exp(-float64(logits[1])))-float64(scores[1])) > 1e-6 {
		t.Fatal(logits)
	}
	if empty := must(model.Rerank(ctx, query, nil, nil))(t); len(empty) != 0 {
		t.Fatal(empty)
	}
	_, err := model.Rerank(ctx, query, []string{"a", "\xff"}, nil)
	wantIs(t, err, mc.ErrInvalidUTF8, "documents[1]")
	_, err = model.Rerank(ctx, query, documents, &mc.RerankOptions{PromptName: "nobody"})
	wantIs(t, err, mc.ErrInvalidArgument, "nobody")
	_, err = model.Rerank(ctx, query, documents, &mc.RerankOptions{PromptName: "a", Prompt: mc.Ptr("b")})
	wantIs(t, err, mc.ErrInvalidArgument, "Prompt")
	_, err = model.Rerank(ctx, query, documents, &mc.RerankOptions{MaxLength: 1})
	wantIs(t, err, mc.ErrInvalidArgument, "max_length")
	_, err = embedder(t).Rerank(ctx, query, documents, nil)
	wantIs(t, err, mc.ErrUnsupported, "rerank")
}

func TestEmbeddings(t *testing.T) {
	model := embedder(t)
	texts := []string{"add an element to a vector", "", "open a file", "x\x00y", "é"}
	var last mc.Progress
	vectors := must(model.EmbedAll(ctx, texts, &mc.EmbedOptions{Progress: func(p mc.Progress) error { last = p; return nil }}))(t)
	if vectors.Len() != 5 || vectors.Dim != model.EmbedDim(nil) || last.Stage != mc.StageEmbed || last.Done != 5 {
		t.Fatal(vectors.Len(), vectors.Dim, last)
	}
	for i, vector := range vectors.All() {
		if !slices.Equal(vector, must(model.Embed(ctx, texts[i], nil))(t)) {
			t.Fatal(i) // alone as in a batch, bit for bit
		}
	}
	hits := must(model.Similarity().TopK(mc.Vectors{Dim: vectors.Dim, Values: must(model.Embed(ctx, "push onto a Vec", nil))(t)}, vectors, 2))(t)
	if len(hits) != 1 || len(hits[0]) != 2 || hits[0][0].Index != 0 || hits[0][0].Score < hits[0][1].Score {
		t.Fatal(hits)
	}
	if ranked := must(model.Rank(ctx, "push onto a Vec", []string{"open a file", "add an element to a vector"}))(t); ranked[0].Index != 1 {
		t.Fatal(ranked)
	}
	short := must(model.Embed(ctx, "a", &mc.EmbedOptions{Dimensions: 8, MaxLength: 16, BatchSize: 1, Pooling: mc.PoolingCLS, Normalize: mc.Ptr(true), Prefix: mc.Ptr("x ")}))(t)
	norm := 0.0
	for _, x := range short {
		norm += float64(x) * float64(x)
	}
	if len(short) != 8 || math.Abs(norm-1) > 1e-5 {
		t.Fatal(len(short), norm)
	}
	if empty := must(model.EmbedAll(ctx, nil, nil))(t); empty.Len() != 0 {
		t.Fatal(empty)
	}
	_, err := model.EmbedAll(ctx, []string{"a", "\xff"}, nil)
	wantIs(t, err, mc.ErrInvalidUTF8, "1")
	_, err = model.Embed(ctx, "a", &mc.EmbedOptions{Dimensions: 1 << 20})
	wantIs(t, err, mc.ErrInvalidArgument, "dimensions")
	_, err = model.Embed(ctx, "a", &mc.EmbedOptions{PromptName: "nobody"})
	wantIs(t, err, mc.ErrInvalidArgument, "nobody")
	_, err = mc.SimilarityCosine.TopK(vectors, vectors, 6)
	wantIs(t, err, mc.ErrInvalidArgument, "k:")
	_, err = mc.SimilarityCosine.TopK(mc.Vectors{Dim: 3, Values: make([]float32, 3)}, vectors, 1)
	wantIs(t, err, mc.ErrInvalidArgument, "documents")
	reason := errors.New("enough")
	_, err = model.EmbedAll(ctx, texts, &mc.EmbedOptions{Progress: func(mc.Progress) error { return reason }})
	wantIs(t, err, reason)
}

const bird = "What is the bird of Velmora?"

func TestTrainingMakesAnAdapterThatAnswers(t *testing.T) {
	model := coder(t)
	data := must(mc.LoadDataset(facts))(t)
	defer data.Close()
	eval := mc.NewDataset()
	defer eval.Close()
	chat := must(mc.ChatFromJSON(`[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]`))(t)
	defer chat.Close()
	check(t, errors.Join(eval.AddText("fn main() {}"), eval.AddCompletion("a", "b"), eval.AddChat(chat)))
	if eval.Len() != 3 || data.Len() == 0 {
		t.Fatal(eval.Len(), data.Len())
	}
	directory := filepath.Join(t.TempDir(), "checkpoint")
	config := &mc.LoRAConfig{Rank: 4, Alpha: mc.Ptr[float64](8), Dropout: 0.1, RSLoRA: true, Seed: 3, Targets: []string{"q_proj", "up_proj"}}
	options := &mc.TrainOptions{LearningRate: mc.Ptr[float64](1e-3), WeightDecay: mc.Ptr[float64](0), Beta1: mc.Ptr[float64](0.8), Epsilon: mc.Ptr[float64](1e-7),
		CheckpointDir: directory, CheckpointEvery: 2, EvalEvery: 2, Patience: 100, GradientCheckpointing: mc.Ptr(false), GradClip: mc.Ptr[float64](0),
		GradAccumulation: 2, Weighting: mc.WeightingTokens, Schedule: mc.ScheduleCosine, WarmupSteps: 1, TotalSteps: 4, WarmupFromZero: true, BatchSize: 2,
		Epochs: 2, MaxLength: 256, MaskPrompt: mc.Ptr(true), Seed: 5}
	if must(model.EstimateTrainMemory(config, options))(t) == 0 {
		t.Fatal("no estimate")
	}
	trainer := must(model.NewTrainer(config, options))(t)
	defer trainer.Close()
	var steps []mc.TrainStep
	for step, err := range trainer.Steps(ctx, data, eval) {
		steps = append(steps, must(step, err)(t))
		if step.Step == 2 {
			if _, err := trainer.Adapter(); !errors.Is(err, mc.ErrBusy) {
				t.Fatal(err)
			}
			break // the trainer stays behind step 2
		}
	}
	if len(steps) != 2 || trainer.StepCount() != 2 || steps[0].TotalSteps != 4 || !math.IsNaN(float64(steps[0].EvalLoss)) || steps[0].Loss <= 0 {
		t.Fatalf("%+v", steps)
	}
	resumed := must(model.ResumeTrainer(directory, nil))(t)
	defer resumed.Close()
	check(t, trainer.Train(ctx, data, eval, nil))
	stoppable, stop := context.WithCancel(ctx)
	err := resumed.Train(stoppable, data, eval, func(step mc.TrainStep) error { stop(); return nil })
	wantIs(t, err, context.Canceled)
	check(t, resumed.Train(ctx, data, eval, nil))
	saved := filepath.Join(t.TempDir(), "saved")
	check(t, trainer.Save(filepath.Join(saved, "a")))
	check(t, resumed.Save(filepath.Join(saved, "b")))
	a, b := must(os.ReadFile(filepath.Join(saved, "a", "adapter_model.safetensors")))(t), must(os.ReadFile(filepath.Join(saved, "b", "adapter_model.safetensors")))(t)
	if !slices.Equal(a, b) {
		t.Fatal("resumed and uninterrupted differ")
	}
	adapter := must(trainer.Adapter())(t)
	defer adapter.Close()
	if info := adapter.Info(); info.Rank != 4 || info.Alpha != 8 || info.ParameterCount == 0 {
		t.Fatal(info)
	}
	again := must(model.NewTrainer(&mc.LoRAConfig{Initial: adapter}, nil))(t)
	again.Close()
}

func TestAdaptersAttachScaleMergeAndAreRemoved(t *testing.T) {
	model := coder(t)
	adapter := train(t, model, 60)
	directory := filepath.Join(t.TempDir(), "adapter")
	check(t, adapter.Save(directory))
	loaded := must(model.LoadAdapter(directory))(t)
	defer loaded.Close()
	if !strings.Contains(must(loaded.ConfigJSON())(t), "lora_alpha") {
		t.Fatal("adapter_config.json")
	}
	s := session(t)
	plain := ask(t, s, bird)
	check(t, s.SetAdapters(loaded.Scaled(1)))
	fact := ask(t, s, bird)
	if !strings.Contains(fact, "heron") || plain == fact {
		t.Fatalf("%q %q", plain, fact)
	}
	check(t, s.SetAdapters(loaded.Scaled(0.5), adapter.Scaled(0.5)))
	if both := ask(t, s, bird); both != fact {
		t.Fatalf("%q", both)
	}
	check(t, s.SetAdapters())
	if bytes := must(s.Memory())(t); bytes == 0 {
		t.Fatal(bytes)
	}
	halves := []mc.ScaledAdapter{loaded.Scaled(0.5), adapter.Scaled(0.5)}
	must(coder(t).Generate(ctx, "a", &mc.GenerateOptions{MaxTokens: 1, Adapters: halves}))(t)
	if again := ask(t, s, bird); again != plain {
		t.Fatalf("%q", again)
	}
	chat := mc.NewChat()
	defer chat.Close()
	check(t, chat.Add("user", bird))
	prompt := must(model.Render(chat, true))(t)
	options := greedy(64)
	options.NoSpecialTokens, options.Adapter = true, adapter.Scaled(1)
	if answer := must(model.Generate(ctx, prompt, options))(t); answer.Text != fact {
		t.Fatalf("%q", answer.Text)
	}
	merged := must(model.Merge(adapter, 1))(t)
	defer merged.Close()
	options.Adapter = mc.ScaledAdapter{}
	if answer := must(merged.Generate(ctx, prompt, options))(t); answer.Text != fact {
		t.Fatalf("%q", answer.Text)
	}
	path := filepath.Join(t.TempDir(), "merged")
	var last mc.Progress
	check(t, merged.Save(ctx, path, "f32", func(p mc.Progress) error { last = p; return nil }))
	if last.Stage != mc.StageWrite || last.Fraction() != 1 {
		t.Fatal(last)
	}
	again := must(mc.Load(ctx, path, nil))(t)
	defer again.Close()
	if answer := must(again.Generate(ctx, prompt, options))(t); answer.Text != fact {
		t.Fatalf("%q", answer.Text)
	}
	reason := errors.New("enough")
	wantIs(t, merged.Save(ctx, path+"2", "", func(mc.Progress) error { return reason }), reason)
	stopped, stop := context.WithCancel(ctx)
	stop()
	wantIs(t, merged.Save(stopped, path+"3", "", nil), context.Canceled)
	wantIs(t, merged.SaveGGUF(ctx, path+".gguf", "", nil), mc.ErrUnsupported)
	_, err := embedder(t).EmbedAll(ctx, []string{"a"}, &mc.EmbedOptions{Adapter: adapter.Scaled(1)})
	wantIs(t, err, mc.ErrMismatch)
	wantIs(t, s.SetAdapters(mc.ScaledAdapter{}), mc.ErrInvalidArgument, "nil")
}

func train(t testing.TB, model *mc.Model, steps uint64) *mc.Adapter {
	data := must(mc.LoadDataset(facts))(t)
	defer data.Close()
	trainer := must(model.NewTrainer(nil, &mc.TrainOptions{LearningRate: mc.Ptr[float64](5e-3), Epochs: 100, TotalSteps: steps}))(t)
	defer trainer.Close()
	check(t, trainer.Train(ctx, data, nil, nil))
	adapter := must(trainer.Adapter())(t)
	t.Cleanup(func() { adapter.Close() })
	return adapter
}

func TestGGUFFilesLoadAndAreSaved(t *testing.T) {
	model := must(mc.Load(ctx, "../tests/golden/gguf/qwen2-Q4_0.gguf", nil))(t)
	defer model.Close()
	path := filepath.Join(t.TempDir(), "copy.gguf")
	check(t, model.SaveGGUF(ctx, path, "", nil))
	again := must(mc.Load(ctx, path, nil))(t)
	defer again.Close()
	if again.Info() != model.Info() {
		t.Fatal(again.Info(), model.Info())
	}
}

func TestMicroBatchesOfTokens(t *testing.T) {
	trainer := must(coder(t).NewTrainer(nil, &mc.TrainOptions{LearningRate: mc.Ptr[float64](1e-2)}))(t)
	defer trainer.Close()
	batch := []mc.Sequence{{Tokens: []uint32{5, 6, 7, 8}}, {Tokens: []uint32{9, 10, 11}, Targets: []bool{false, true, false}}}
	before := must(trainer.EvalBatch(ctx, batch))(t)
	if loss := must(trainer.TrainBatch(ctx, batch))(t); loss != before {
		t.Fatal(loss, before)
	}
	if after := must(trainer.EvalBatch(ctx, batch))(t); after >= before || trainer.StepCount() != 1 {
		t.Fatal(after, before, trainer.StepCount())
	}
	if update := must(trainer.LastUpdate())(t); update.Step != 1 || update.LearningRate != 1e-2 || update.GradNorm <= 0 {
		t.Fatal(update)
	}
	_, err := trainer.TrainBatch(ctx, nil)
	wantIs(t, err, mc.ErrInvalidArgument)
	_, err = trainer.TrainBatch(ctx, []mc.Sequence{{Tokens: []uint32{1, 2}, Targets: []bool{true}}})
	wantIs(t, err, mc.ErrInvalidArgument, "Targets")
	stopped, stop := context.WithCancel(ctx)
	stop()
	_, err = trainer.TrainBatch(stopped, batch)
	wantIs(t, err, context.Canceled)
	_ = must(trainer.TrainBatch(ctx, batch))(t) // the flag was reset
}
