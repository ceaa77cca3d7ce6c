package metalcandle

// #include "callbacks.h"
import "C"

import (
	"context"
	"errors"
	"iter"
	"sync"
	"unsafe"
)

// Weighting is what the micro-batches of a step count.
type Weighting uint32

// The weightings.
const (
	// WeightingMicroBatches counts each the same, whatever its number of tokens.
	WeightingMicroBatches = Weighting(C.MC_WEIGHTING_MICRO_BATCHES)
	// WeightingTokens counts each token the same, as the Trainer of transformers does.
	WeightingTokens = Weighting(C.MC_WEIGHTING_TOKENS)
)

// Schedule is what the learning rate does behind the warm-up.
type Schedule uint32

// The schedules.
const (
	ScheduleConstant = Schedule(C.MC_SCHEDULE_CONSTANT) // it stays
	ScheduleLinear   = Schedule(C.MC_SCHEDULE_LINEAR)   // it falls to 0 in a line
	ScheduleCosine   = Schedule(C.MC_SCHEDULE_COSINE)   // it falls to 0 along half a cosine
)

// LoRAConfig is the adapter that is to be trained.
type LoRAConfig struct {
	// Rank is how many values each input and output of a changed matrix gets: 1 to 8192; 0 = 8.
	Rank int
	// Alpha is how much a change counts, Alpha / Rank times: above 0; nil = 16.
	Alpha *float64
	// Dropout is the share of a change's inputs that a training pass does not see: at least 0, below 1.
	Dropout float64
	// RSLoRA counts a change Alpha / sqrt(Rank) times.
	RSLoRA bool
	// Seed decides the fresh weights and the dropout.
	Seed uint64
	// Targets are the matrices that get a change, as PEFT names them: "q_proj", "layers.0.mlp.up_proj"; none = every matrix of the layers.
	Targets []string
	// Initial is an adapter to go on with: its rank, alpha and targets are taken, whatever else is set here.
	Initial *Adapter
	// JSON is options by the names that mc_lora_config_set_json() tells; they count more than those here.
	JSON string
}

func (o *LoRAConfig) build(c *call) *C.mc_lora_config {
	config := C.mc_lora_config_new()
	c.later(func() { C.mc_lora_config_free(config) })
	if o == nil {
		return config
	}
	if o.Rank != 0 {
		C.mc_lora_config_set_rank(config, c.size("rank", o.Rank))
	}
	if o.Alpha != nil {
		C.mc_lora_config_set_alpha(config, C.double(*o.Alpha))
	}
	C.mc_lora_config_set_dropout(config, C.double(o.Dropout))
	C.mc_lora_config_set_rslora(config, C.bool(o.RSLoRA))
	C.mc_lora_config_set_seed(config, C.uint64_t(o.Seed))
	for _, target := range o.Targets {
		if module := c.cstring("target", target); module != nil {
			C.mc_lora_config_add_target(config, module)
		}
	}
	if o.Initial != nil {
		C.mc_lora_config_set_initial(config, use(c, o.Initial.ref))
	}
	if o.JSON != "" {
		data, n := text(o.JSON)
		C.mc_lora_config_set_json(config, data, n)
	}
	return config
}

// TrainOptions is how to train.
type TrainOptions struct {
	// LearningRate is how far a step goes: 0 to 1; nil = 2e-4.
	LearningRate *float64
	// WeightDecay times the learning rate is what each step takes off every weight: 0 to 1; nil = 0.01.
	WeightDecay *float64
	// Beta1 and Beta2 are how much AdamW's averages keep, of the gradient and of its square; nil = 0.9 and 0.999.
	Beta1, Beta2 *float64
	// Epsilon is what AdamW adds to the root of the second average: above 0; nil = 1e-8.
	Epsilon *float64
	// CheckpointDir is where [Trainer.Train] writes checkpoints, for [Model.ResumeTrainer]; "" = nowhere.
	CheckpointDir string
	// CheckpointEvery is how many steps are between two checkpoints; 0 = one at the end alone.
	CheckpointEvery uint64
	// EvalEvery is how many steps are between two evaluations; 0 = one at the end alone.
	EvalEvery uint64
	// Patience is how many evaluations in a row may be without a new lowest loss; 0 = any number.
	Patience uint64
	// GradientCheckpointing keeps the inputs of layers alone and computes the rest a second time; nil = true.
	GradientCheckpointing *bool
	// GradClip is the length to which the gradient of all weights together is cut; a pointer to 0 = as it is, nil = 1.
	GradClip *float64
	// GradAccumulation is how many micro-batches make a step: 1 to 1048576; 0 = 1.
	GradAccumulation int
	Weighting        Weighting
	Schedule         Schedule
	// WarmupSteps are those in which the learning rate rises.
	WarmupSteps uint64
	// TotalSteps is where the schedule ends, and with it [Trainer.Train]; 0 = with the last epoch.
	TotalSteps uint64
	// MaxSteps is the step that [Trainer.Train] ends with at the latest, whatever the schedule; 0 = none.
	MaxSteps uint64
	// WarmupFromZero begins a warm-up with the learning rate 0, as the Trainer of transformers does.
	WarmupFromZero bool
	// BatchSize is how many examples are a micro-batch: 1 to 1048576; 0 = 4.
	BatchSize int
	// Epochs is how often each example is seen; 0 = once.
	Epochs int
	// MaxLength is the most tokens of an example, at least 2; 0 = the model's context, but at most 2048.
	MaxLength int
	// MaskPrompt is whether completions and conversations teach the answers alone; nil = true.
	MaskPrompt *bool
	// Seed decides the order of examples.
	Seed uint64
	// JSON is options by the names that mc_train_options_set_json() tells; they count more than those here.
	JSON string
}

func (o *TrainOptions) build(c *call, flag *C.mc_cancel) *C.mc_train_options {
	options := C.mc_train_options_new()
	c.later(func() { C.mc_train_options_free(options) })
	C.mc_train_options_set_cancel(options, flag)
	if o == nil {
		return options
	}
	or := func(value *float64, otherwise float64) C.double {
		if value == nil {
			return C.double(otherwise)
		}
		return C.double(*value)
	}
	if o.LearningRate != nil {
		C.mc_train_options_set_learning_rate(options, C.double(*o.LearningRate))
	}
	if o.WeightDecay != nil {
		C.mc_train_options_set_weight_decay(options, C.double(*o.WeightDecay))
	}
	if o.Beta1 != nil || o.Beta2 != nil {
		C.mc_train_options_set_adam_betas(options, or(o.Beta1, 0.9), or(o.Beta2, 0.999))
	}
	if o.Epsilon != nil {
		C.mc_train_options_set_adam_epsilon(options, C.double(*o.Epsilon))
	}
	C.mc_train_options_set_checkpoint(options, c.optional("checkpoint_dir", o.CheckpointDir), C.uint64_t(o.CheckpointEvery))
	C.mc_train_options_set_eval_every(options, C.uint64_t(o.EvalEvery))
	C.mc_train_options_set_patience(options, C.uint64_t(o.Patience))
	if o.GradientCheckpointing != nil {
		C.mc_train_options_set_gradient_checkpointing(options, C.bool(*o.GradientCheckpointing))
	}
	if o.GradClip != nil {
		C.mc_train_options_set_grad_clip(options, C.double(*o.GradClip))
	}
	if o.GradAccumulation != 0 {
		C.mc_train_options_set_grad_accumulation(options, c.size("grad_accumulation", o.GradAccumulation))
	}
	C.mc_train_options_set_weighting(options, C.mc_weighting(o.Weighting))
	C.mc_train_options_set_schedule(options, C.mc_schedule(o.Schedule), C.uint64_t(o.WarmupSteps), C.uint64_t(o.TotalSteps))
	C.mc_train_options_set_max_steps(options, C.uint64_t(o.MaxSteps))
	C.mc_train_options_set_warmup_from_zero(options, C.bool(o.WarmupFromZero))
	if o.BatchSize != 0 {
		C.mc_train_options_set_batch_size(options, c.size("batch_size", o.BatchSize))
	}
	if o.Epochs != 0 {
		C.mc_train_options_set_epochs(options, c.size("epochs", o.Epochs))
	}
	C.mc_train_options_set_max_length(options, c.size("max_length", o.MaxLength))
	if o.MaskPrompt != nil {
		C.mc_train_options_set_mask_prompt(options, C.bool(*o.MaskPrompt))
	}
	C.mc_train_options_set_seed(options, C.uint64_t(o.Seed))
	if o.JSON != "" {
		data, n := text(o.JSON)
		C.mc_train_options_set_json(options, data, n)
	}
	return options
}

// TrainStep is one finished step of a training.
type TrainStep struct {
	// Step is from 1 to TotalSteps, the step that the training ends with unless it is stopped.
	Step, TotalSteps uint64
	// Epoch is from 1.
	Epoch int
	// Loss is the mean cross entropy of the step's target tokens, in nats, before the step.
	Loss float32
	// EvalLoss is the same of the evaluation dataset, after the step; NaN where it was not evaluated.
	EvalLoss     float32
	LearningRate float64
	// GradNorm is the length of the gradient of all weights together, before it was cut.
	GradNorm float32
	// TokensPerSecond counts all tokens of the step, targets or not.
	TokensPerSecond float32
	// TargetTokens are those that the loss is computed of.
	TargetTokens uint64
	// PeakBytes is the most memory that the process has had so far; 0 where the system does not tell.
	PeakBytes uint64
	// Truncated is how many sequences of the training dataset were cut to MaxLength.
	Truncated uint64
	// Skipped is how many sequences of the training dataset have no target token.
	Skipped uint64
	// IsBest is whether EvalLoss is the lowest so far.
	IsBest bool
}

func goStep(e *C.mc_train_event) TrainStep {
	return TrainStep{uint64(e.step), uint64(e.total_steps), int(e.epoch), float32(e.loss), float32(e.eval_loss), float64(e.learning_rate),
		float32(e.grad_norm), float32(e.tokens_per_second), uint64(e.target_tokens), uint64(e.peak_bytes), uint64(e.truncated), uint64(e.skipped),
		bool(e.is_best)}
}

// Trainer is an adapter in training. It holds its model; one call at a time.
type Trainer struct {
	ref *ref[*C.mc_lora_trainer]
	// The flag of its options, which one call at a time hooks to its context.
	exclusive *sync.Mutex
	flag      *C.mc_cancel
}

// EstimateTrainMemory is how many bytes a trainer takes beside the model, at most.
func (m *Model) EstimateTrainMemory(config *LoRAConfig, options *TrainOptions) (uint64, error) {
	c := newCall(context.Background())
	defer c.done()
	handle, lora, o := use(c, m.ref), config.build(c), options.build(c, nil)
	if c.err != nil {
		return 0, c.err
	}
	var bytes C.uint64_t
	var object *C.mc_error
	err := take(C.mc_model_estimate_training_memory(handle, lora, o, &bytes, &object), object)
	return uint64(bytes), err
}

// NewTrainer makes a trainer with fresh weights, which change nothing yet, or with those of config.Initial.
func (m *Model) NewTrainer(config *LoRAConfig, options *TrainOptions) (*Trainer, error) {
	return m.trainer(options, func(c *call, handle *C.mc_model, o *C.mc_train_options, out **C.mc_lora_trainer, object **C.mc_error) C.mc_status {
		lora := config.build(c)
		if c.err != nil {
			return C.MC_OK
		}
		return C.mc_lora_trainer_new(handle, lora, o, out, object)
	})
}

// ResumeTrainer goes on where [Trainer.Save] or a checkpoint has left off. All options but BatchSize, GradAccumulation, Weighting,
// MaxLength, MaskPrompt and Seed may differ from those of the checkpoint; nil options are the checkpoint's own, and a context then only
// ends a call on the trainer between two of its steps.
func (m *Model) ResumeTrainer(directory string, options *TrainOptions) (*Trainer, error) {
	return m.trainer(options, func(c *call, handle *C.mc_model, o *C.mc_train_options, out **C.mc_lora_trainer, object **C.mc_error) C.mc_status {
		path := c.cstring("checkpoint_dir", directory)
		if c.err != nil {
			return C.MC_OK
		}
		if options == nil {
			o = nil
		}
		return C.mc_lora_trainer_resume(handle, path, o, out, object)
	})
}

func (m *Model) trainer(options *TrainOptions,
	f func(*call, *C.mc_model, *C.mc_train_options, **C.mc_lora_trainer, **C.mc_error) C.mc_status) (*Trainer, error) {
	c := newCall(context.Background())
	defer c.done()
	flag := C.mc_cancel_new()
	handle, o := use(c, m.ref), options.build(c, flag)
	var out *C.mc_lora_trainer
	if c.err == nil {
		var object *C.mc_error
		status := f(c, handle, o, &out, &object)
		if err := take(status, object); err != nil {
			c.fail(err)
		}
	}
	if c.err != nil {
		C.mc_cancel_free(flag)
		return nil, c.err
	}
	t := &Trainer{exclusive: new(sync.Mutex), flag: flag}
	t.ref = own(t, out, func(h *C.mc_lora_trainer) {
		C.mc_lora_trainer_free(h)
		C.mc_cancel_free(flag)
	})
	return t, nil
}

// Close frees the trainer. It returns nil.
func (t *Trainer) Close() error { t.ref.close(); return nil }

// use is use() for a call that changes the trainer: the context triggers the trainer's flag, which is reset after it.
func (t *Trainer) use(c *call) *C.mc_lora_trainer {
	if !t.exclusive.TryLock() {
		c.fail(&Error{ErrBusy, "trainer: in use by another call", "trainer: in use by another call"})
		return nil
	}
	c.later(t.exclusive.Unlock)
	handle := use(c, t.ref)
	if c.err == nil {
		c.later(func() { C.mc_cancel_reset(t.flag) })
		c.trigger(c.ctx, t.flag)
	}
	return handle
}

// Train trains on a dataset until the last epoch, TotalSteps or Patience ends it; what was done before, and is in a checkpoint, counts.
// eval is evaluated, and may be nil. onStep hears of each step, and may be nil; its error ends the training, as the context does, and
// another call with the same dataset goes on there. In onStep the trainer is busy: to have the adapter as it is, stop, take it, and go on.
func (t *Trainer) Train(ctx context.Context, train, eval *Dataset, onStep func(TrainStep) error) error {
	c := newCall(ctx)
	defer c.done()
	report := onStep
	if ctx.Done() != nil {
		// A trainer that was resumed with the options of its checkpoint has no flag.
		report = func(step TrainStep) error {
			if onStep != nil {
				if err := onStep(step); err != nil {
					return err
				}
			}
			if ctx.Err() != nil {
				return cancelled(ctx)
			}
			return nil
		}
	}
	handle, data := t.use(c), use(c, train.ref)
	var evaluated *C.mc_dataset
	if eval != nil {
		evaluated = use(c, eval.ref)
	}
	userData := callback(c, report)
	if c.err != nil {
		return c.err
	}
	object := c.failure()
	var status C.mc_status
	c.run(func() { status = C.mcgo_lora_train(handle, data, evaluated, userData, object) })
	return c.result(status, *object)
}

// Steps trains as [Trainer.Train] does, as a loop asks for its steps. Leaving the loop leaves the trainer behind the last of them; an error
// is the loop's last value.
func (t *Trainer) Steps(ctx context.Context, train, eval *Dataset) iter.Seq2[TrainStep, error] {
	return func(yield func(TrainStep, error) bool) {
		err := t.Train(ctx, train, eval, func(step TrainStep) error {
			if !yield(step, nil) {
				return errBreak
			}
			return nil
		})
		if err != nil && !errors.Is(err, errBreak) {
			yield(TrainStep{}, err)
		}
	}
}

// Sequence is tokens to learn from.
type Sequence struct {
	Tokens []uint32
	// Targets is whether each token is one that the loss is computed of; the first never is. nil = every other one.
	Targets []bool
}

// TrainBatch learns from one micro-batch, and gives the mean cross entropy of its target tokens, in nats, before it changed anything.
func (t *Trainer) TrainBatch(ctx context.Context, batch []Sequence) (loss float32, err error) {
	return t.batch(ctx, batch, func(handle *C.mc_lora_trainer, tokens *C.uint32_t, mask *C.uint8_t, offsets *C.size_t, n C.size_t,
		loss *C.float, object **C.mc_error) C.mc_status {
		return C.mc_lora_trainer_train_step(handle, tokens, mask, offsets, n, loss, object)
	})
}

// EvalBatch is the loss of one micro-batch with the weights as they are; it changes nothing.
func (t *Trainer) EvalBatch(ctx context.Context, batch []Sequence) (loss float32, err error) {
	return t.batch(ctx, batch, func(handle *C.mc_lora_trainer, tokens *C.uint32_t, mask *C.uint8_t, offsets *C.size_t, n C.size_t,
		loss *C.float, object **C.mc_error) C.mc_status {
		return C.mc_lora_trainer_eval_step(handle, tokens, mask, offsets, n, loss, object)
	})
}

func (t *Trainer) batch(ctx context.Context, batch []Sequence,
	f func(*C.mc_lora_trainer, *C.uint32_t, *C.uint8_t, *C.size_t, C.size_t, *C.float, **C.mc_error) C.mc_status) (float32, error) {
	c := newCall(ctx)
	defer c.done()
	var tokens []uint32
	var mask []C.uint8_t
	offsets := []C.size_t{0}
	for i, sequence := range batch {
		if sequence.Targets != nil && len(sequence.Targets) != len(sequence.Tokens) {
			return 0, invalid("batch[%d].Targets: expected %d, one a token, found %d", i, len(sequence.Tokens), len(sequence.Targets))
		}
		for j := range sequence.Tokens {
			target := C.uint8_t(1)
			if j == 0 || sequence.Targets != nil && !sequence.Targets[j] {
				target = 0
			}
			mask = append(mask, target)
		}
		tokens = append(tokens, sequence.Tokens...)
		offsets = append(offsets, C.size_t(len(tokens)))
	}
	if len(tokens) == 0 {
		return 0, invalid("batch: expected sequences of tokens, found none")
	}
	handle := t.use(c)
	if ctx.Err() != nil { // a trainer without a flag
		c.fail(cancelled(ctx))
	}
	if c.err != nil {
		return 0, c.err
	}
	data, _ := ids(tokens)
	var loss C.float
	object := c.failure()
	status := f(handle, data, unsafe.SliceData(mask), &offsets[0], C.size_t(len(batch)), &loss, object)
	return float32(loss), c.result(status, *object)
}

// StepCount is how many steps of the optimizer are finished, during [Trainer.Train] as of the last one; 0 once it is closed.
func (t *Trainer) StepCount() uint64 {
	handle, err := t.ref.acquire()
	if err != nil {
		return 0
	}
	defer t.ref.release()
	return uint64(C.mc_lora_trainer_step_count(handle))
}

// Update is what one step of the optimizer did.
type Update struct {
	// Step is from 1; 0 = there was none yet.
	Step         uint64
	LearningRate float64
	// GradNorm is the length of the gradient of all weights together, before it was cut.
	GradNorm float32
}

// LastUpdate is the last step of the optimizer: whether [Trainer.TrainBatch] made one shows in its number.
func (t *Trainer) LastUpdate() (Update, error) {
	handle, err := t.ref.acquire()
	if err != nil {
		return Update{}, err
	}
	defer t.ref.release()
	var step C.uint64_t
	var learningRate C.double
	var gradNorm C.float
	var object *C.mc_error
	err = take(C.mc_lora_trainer_last_update(handle, &step, &learningRate, &gradNorm, &object), object)
	return Update{uint64(step), float64(learningRate), float32(gradNorm)}, err
}

// Adapter is the adapter as it is now: a copy, to attach to sessions or to save while training goes on.
func (t *Trainer) Adapter() (*Adapter, error) {
	handle, err := t.ref.acquire()
	if err != nil {
		return nil, err
	}
	defer t.ref.release()
	var out *C.mc_lora
	var object *C.mc_error
	if err := take(C.mc_lora_trainer_adapter(handle, &out, &object), object); err != nil {
		return nil, err
	}
	return newAdapter(out), nil
}

// Save writes a checkpoint, for [Model.ResumeTrainer]; the directory is also the adapter in PEFT's format.
func (t *Trainer) Save(directory string) error {
	c := newCall(context.Background())
	defer c.done()
	handle, path := use(c, t.ref), c.cstring("checkpoint_dir", directory)
	if c.err != nil {
		return c.err
	}
	var object *C.mc_error
	return take(C.mc_lora_trainer_save(handle, path, &object), object)
}
