import CMetalCandle
import Foundation

/// The adapter that is to be trained.
public struct AdapterConfiguration: Sendable {
    /// How many values each input and output of a changed matrix gets.
    public var rank: Int
    /// A change counts `alpha / rank` times.
    public var alpha: Double
    /// The share of a change's inputs that a training pass does not see, below 1.
    public var dropout: Double
    /// Whether a change counts `alpha / sqrt(rank)` times instead.
    public var isRankStabilized: Bool
    /// The matrices that get a change, as PEFT names them, such as `q_proj` or `layers.0.mlp.up_proj`; none = every matrix of the layers.
    public var targets: [String]
    /// What decides the fresh weights and the dropout.
    public var seed: UInt64
    /// An adapter to go on with: its rank, alpha and targets are taken, whatever is set here.
    public var initial: Adapter?
    /// Options as JSON, by the names that `mc_lora_config_set_json` of the C interface tells; they count more than those here.
    public var json: String?

    /// Describes an adapter.
    public init(
        rank: Int = 8, alpha: Double = 16, dropout: Double = 0, isRankStabilized: Bool = false, targets: [String] = [], seed: UInt64 = 0,
        initial: Adapter? = nil, json: String? = nil
    ) {
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.isRankStabilized = isRankStabilized
        self.targets = targets
        self.seed = seed
        self.initial = initial
        self.json = json
    }

    func native() throws -> Handle {
        let handle = Handle(mc_lora_config_new(), free: mc_lora_config_free)
        let config = handle.pointer
        try requirePositive(rank, "rank")
        mc_lora_config_set_rank(config, rank)
        mc_lora_config_set_alpha(config, alpha)
        mc_lora_config_set_dropout(config, dropout)
        mc_lora_config_set_rslora(config, isRankStabilized)
        mc_lora_config_set_seed(config, seed)
        for target in targets {
            try requireNoNUL(target, "targets")
            mc_lora_config_add_target(config, target)
        }
        if let initial { mc_lora_config_set_initial(config, initial.handle.pointer) }
        json?.withBytes { mc_lora_config_set_json(config, $0, $1) }
        return handle
    }
}

/// How to train.
public struct TrainingOptions: Sendable, Hashable {
    /// What the learning rate does behind the warm-up.
    public enum Schedule: Sendable, Hashable {
        /// It stays.
        case constant
        /// It falls to 0 in a line.
        case linear
        /// It falls to 0 along half a cosine.
        case cosine
    }

    /// What the micro-batches of a step count.
    public enum Weighting: Sendable, Hashable {
        /// Each the same, whatever its number of tokens.
        case microBatches
        /// Each token the same.
        case tokens
    }

    /// Where checkpoints are written, each in place of the one before.
    public struct Checkpoints: Sendable, Hashable {
        /// Made if it does not exist. It is also the adapter in PEFT's layout, and its folder `best` that with the lowest validation loss.
        public var directory: URL
        /// Steps between two; nil = one at the end, which there is in any case.
        public var interval: Int?

        /// Says where and how often.
        public init(_ directory: URL, interval: Int? = nil) {
            self.directory = directory
            self.interval = interval
        }
    }

    /// How often each example is seen.
    public var epochs: Int
    /// How many examples are a micro-batch.
    public var batchSize: Int
    /// How many micro-batches make a step.
    public var gradientAccumulation: Int
    /// What the micro-batches of a step count.
    public var weighting: Weighting
    /// How far a step goes, 0 to 1.
    public var learningRate: Double
    /// What the learning rate does behind the warm-up.
    public var schedule: Schedule
    /// Steps in which the learning rate rises.
    public var warmupSteps: Int
    /// Whether it rises from 0, as in the Trainer of transformers.
    public var warmsUpFromZero: Bool
    /// Where the schedule and the training end; nil = with the last epoch.
    public var totalSteps: Int?
    /// The step that training ends with at the latest, whatever the schedule; nil = none.
    public var maximumSteps: Int?
    /// What each step takes off every weight: this times the learning rate; 0 to 1.
    public var weightDecay: Double
    /// How much AdamW's average of the gradient keeps, below 1.
    public var beta1: Double
    /// How much AdamW's average of its square keeps, below 1.
    public var beta2: Double
    /// What AdamW adds to the root of the second average.
    public var epsilon: Double
    /// The length that the gradient of all weights together is cut to; nil = as it is.
    public var gradientClip: Double?
    /// Whether a pass computes most of its values twice, for memory of one layer instead of all, at a third more time.
    public var gradientCheckpointing: Bool
    /// The most tokens of an example; nil = the model's context, at most 2048.
    public var maximumLength: Int?
    /// Whether completions and conversations teach the answers alone.
    public var masksPrompts: Bool
    /// What decides the order of the examples.
    public var seed: UInt64
    /// Steps between two measurements on the validation data; nil = one at the end, which there is in any case.
    public var validationInterval: Int?
    /// How many measurements in a row may find nothing better before training ends; nil = any number.
    public var patience: Int?
    /// Where checkpoints are written; nil = nowhere.
    public var checkpoints: Checkpoints?
    /// Options as JSON, by the names that `mc_train_options_set_json` of the C interface tells; they count more than those here.
    public var json: String?

    /// Makes options.
    public init(
        epochs: Int = 1, batchSize: Int = 4, gradientAccumulation: Int = 1, weighting: Weighting = .microBatches,
        learningRate: Double = 2e-4, schedule: Schedule = .constant, warmupSteps: Int = 0, warmsUpFromZero: Bool = false,
        totalSteps: Int? = nil, weightDecay: Double = 0.01, beta1: Double = 0.9, beta2: Double = 0.999, epsilon: Double = 1e-8,
        gradientClip: Double? = 1, gradientCheckpointing: Bool = true, maximumLength: Int? = nil, masksPrompts: Bool = true,
        seed: UInt64 = 0, validationInterval: Int? = nil, patience: Int? = nil, checkpoints: Checkpoints? = nil, json: String? = nil,
        maximumSteps: Int? = nil
    ) {
        self.epochs = epochs
        self.batchSize = batchSize
        self.gradientAccumulation = gradientAccumulation
        self.weighting = weighting
        self.learningRate = learningRate
        self.schedule = schedule
        self.warmupSteps = warmupSteps
        self.warmsUpFromZero = warmsUpFromZero
        self.totalSteps = totalSteps
        self.weightDecay = weightDecay
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.gradientClip = gradientClip
        self.gradientCheckpointing = gradientCheckpointing
        self.maximumLength = maximumLength
        self.masksPrompts = masksPrompts
        self.seed = seed
        self.validationInterval = validationInterval
        self.patience = patience
        self.maximumSteps = maximumSteps
        self.checkpoints = checkpoints
        self.json = json
    }

    func native(_ cancel: CancelFlag) throws -> Handle {
        let positive = [
            ("epochs", epochs), ("batchSize", batchSize), ("gradientAccumulation", gradientAccumulation), ("totalSteps", totalSteps),
            ("maximumSteps", maximumSteps),
            ("maximumLength", maximumLength), ("validationInterval", validationInterval), ("patience", patience),
            ("checkpoints.interval", checkpoints?.interval),
        ]
        for case (let name, let value?) in positive { try requirePositive(value, name) }
        try requireNotNegative(warmupSteps, "warmupSteps")
        if gradientClip == 0 { throw MetalCandleError(.invalidArgument, "gradientClip: expected more than 0, found 0") }

        let handle = Handle(mc_train_options_new(), free: mc_train_options_free)
        let options = handle.pointer
        mc_train_options_set_cancel(options, cancel.pointer)
        mc_train_options_set_epochs(options, epochs)
        mc_train_options_set_batch_size(options, batchSize)
        mc_train_options_set_grad_accumulation(options, gradientAccumulation)
        mc_train_options_set_weighting(options, weighting.native)
        mc_train_options_set_learning_rate(options, learningRate)
        mc_train_options_set_schedule(options, schedule.native, UInt64(warmupSteps), UInt64(totalSteps ?? 0))
        mc_train_options_set_max_steps(options, UInt64(maximumSteps ?? 0))
        mc_train_options_set_warmup_from_zero(options, warmsUpFromZero)
        mc_train_options_set_weight_decay(options, weightDecay)
        mc_train_options_set_adam_betas(options, beta1, beta2)
        mc_train_options_set_adam_epsilon(options, epsilon)
        mc_train_options_set_grad_clip(options, gradientClip ?? 0)
        mc_train_options_set_gradient_checkpointing(options, gradientCheckpointing)
        mc_train_options_set_max_length(options, maximumLength ?? 0)
        mc_train_options_set_mask_prompt(options, masksPrompts)
        mc_train_options_set_seed(options, seed)
        mc_train_options_set_eval_every(options, UInt64(validationInterval ?? 0))
        mc_train_options_set_patience(options, UInt64(patience ?? 0))
        if let checkpoints {
            let path = try checkpoints.directory.nativePath("checkpoints.directory")
            mc_train_options_set_checkpoint(options, path, UInt64(checkpoints.interval ?? 0))
        }
        json?.withBytes { mc_train_options_set_json(options, $0, $1) }
        return handle
    }
}

extension TrainingOptions.Schedule {
    var native: mc_schedule {
        switch self {
        case .constant: .MC_SCHEDULE_CONSTANT
        case .linear: .MC_SCHEDULE_LINEAR
        case .cosine: .MC_SCHEDULE_COSINE
        }
    }
}

extension TrainingOptions.Weighting {
    var native: mc_weighting {
        switch self {
        case .microBatches: .MC_WEIGHTING_MICRO_BATCHES
        case .tokens: .MC_WEIGHTING_TOKENS
        }
    }
}
