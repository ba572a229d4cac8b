/* faults.h: the faults, one line each, from which faults.c makes the table and this file the numbers.
 * Internal to the candidates.
 *
 *     X(number, name, stage, explained by, applies, usual size, what)
 */
#ifndef CD_FAULTS_H
#define CD_FAULTS_H

/* clang-format off */
#define CD_SELECTION_FAULTS(X)                                                                                                                        \
    X(TIE_HIGHER, "tie-higher-index", "selection", "tie-higher-index", ranks, 0, "of equal scores the higher index is taken")                         \
    X(THRESHOLD_SIDE, "threshold-side", "selection", "threshold-side", by_threshold, 0, "> for >=, or >= for >")                                      \
    X(K_PLUS_ONE, "k-plus-one", "selection", "k-plus-one", can_take_more, 0, "K, or k, is one too many")                                              \
    X(K_MINUS_ONE, "k-minus-one", "selection", "k-minus-one", can_take_less, 0, "K, or k, is one too few")                                            \
    X(K_CEIL, "k-ceil", "selection", "k-ceil", k_is_cut, 0, "k = ceil(P G / n) for floor")                                                            \
    X(K_FROM_BATCH, "k-from-batch", "selection", "k-from-batch", pool_is_a_part, 0, "k from the tokens of the step, not of the pool")                 \
    X(POOLS_IGNORED, "pools-ignored", "selection", "pools-ignored", has_pools, 0, "one choice from all pools of a micro-batch")                       \
    X(CAPACITY_IGNORED, "capacity-ignored", "selection", "capacity-ignored", clamps, 0, "neither bound is applied")                                   \
    X(UPPER_PLUS, "capacity-upper-plus-one", "selection", "capacity-upper-off-by-one", clamps, 0, "upper bound one too high")                         \
    X(UPPER_MINUS, "capacity-upper-minus-one", "selection", "capacity-upper-off-by-one", clamps, 0, "upper bound one too low")                        \
    X(LOWER_PLUS, "capacity-lower-plus-one", "selection", "capacity-lower-off-by-one", clamps, 0, "lower bound one too high")                         \
    X(LOWER_MINUS, "capacity-lower-minus-one", "selection", "capacity-lower-off-by-one", clamps, 0, "lower bound one too low")                        \
    X(PADDING_FORGOTTEN, "padding-forgotten", "selection", "padding-forgotten", clamps, 0, "the lower bound is not applied")                          \
    X(PADDING_WEIGHT_ZERO, "padding-weight-zero", "selection", "padding-weight-zero", clamps, 0, "padded tokens weigh 0, and pass no gradient to their gates") \
    X(CLAMPED_BY_INDEX, "clamped-by-index", "selection", "clamped-by-index", clamps, 0, "clamped experts keep, or add, the first tokens, not the best") \
    X(EC_PER_TOKEN, "expert-choice-per-token", "selection", "expert-choice-per-token", by_choice, 0, "each token takes its G best experts; cutoffs are right") \
    X(BIAS_NOT_IN_SELECTION, "bias-not-in-selection", "selection", "bias-not-in-selection", keeps_bias, 0, "the choice is made without the bias")     \
    X(LOGITS_LOW, "logits-low-precision", "selection", "logits-low-precision", is_moe, 0, "scores are rounded to 8 bits before they are compared")    \
    X(MICRO_IGNORED, "micro-batches-ignored", "selection", "micro-batches-ignored", pools_in_micro_batches, 0, "one selection for the whole step")    \
    X(CAPACITY_IN_EVALUATION, "capacity-in-evaluation", "selection", "capacity-in-evaluation", could_clamp, 0, "the capacity is applied in evaluation") \
    X(WRONG_PHASE, "wrong-phase", "selection", "wrong-phase", has_phases, 0, "by threshold in the warm-up, or by choice after it")                    \
    X(LOWEST_SCORES, "lowest-scores", "selection", "lowest-scores", ranks_all, 0, "TC and EC take the lowest scores")                                 \
    X(GATES_IN_SELECTION, "gates-in-selection", "selection", "gates-in-selection", is_moe, 0, "gate values are compared, not logits")                     \
    X(POSITIVE_SCORES, "positive-scores-alone", "selection", "positive-scores-alone", is_moe, 0, "scores of 0 and below are not found")                   \
    X(INDEX_OF_8_BITS, "experts-beyond-255", "selection", "experts-beyond-table", beyond_255, 0, "experts from 256 on are not taken")                       \
    X(LOADS_IN_TILES, "loads-cut-to-tiles", "selection", "loads-cut-to-tiles", is_moe, 0, "loads are cut to multiples of 8, the last tokens dropped")     \
    X(OVERFLOW_DROPPED, "overflow-dropped", "selection", "overflow-dropped", by_token, 0, "loads are cut to their mean, the last tokens dropped")

#define CD_STATE_FAULTS(X)                                                                                                                            \
    X(EMA_BEFORE_USE, "ema-before-use", "state", "ema-before-use", trains_by_threshold, 0, "the threshold comes from the average after this step's update") \
    X(EMA_BETA_SWAPPED, "ema-beta-swapped", "state", "ema-beta-swapped", updates_ema, 0, "(1-b) ema + b kth")                                         \
    X(EMA_UNCORRECTED, "ema-uncorrected", "state", "ema-uncorrected", is_corrected, 0, "the threshold is not divided by 1 - b^u")                     \
    X(EMA_CORRECTED, "ema-corrected-unasked", "state", "ema-uncorrected", is_uncorrected, 0, "the threshold is divided by 1 - b^u where the case has no correction") \
    X(EMA_CORRECTION_OFF, "ema-correction-off-by-one", "state", "ema-correction-off-by-one", is_corrected, 0, "1 - b^(u+1) for 1 - b^u")              \
    X(EMA_FROM_ROUTED, "ema-from-routed", "state", "ema-from-routed", trains_by_threshold, 0, "the cutoff is the lowest routed score (of an expert without tokens: the k-th largest, as it should be)") \
    X(EMA_LAST_MICRO, "ema-last-micro-batch", "state", "ema-last-micro-batch", ema_in_micro_batches, 0, "the cutoff is the last micro-batch's, not the mean") \
    X(EMA_IN_EVALUATION, "ema-in-evaluation", "state", "ema-in-evaluation", evaluates_ema, 0, "evaluation updates the average: state.ema and state.updates appear") \
    X(EMA_NOT_UPDATED, "ema-not-updated", "state", "ema-not-updated", updates_ema, 0, "state.ema is the average from before the step; updates counts on") \
    X(UPDATES_NOT_COUNTED, "updates-not-counted", "state", "updates-not-counted", updates_ema, 0, "state.updates is what it was before the step")     \
    X(LOSSFREE_SIGN, "lossfree-sign", "state", "lossfree-sign", updates_bias, 0, "the bias moves the wrong way")                                      \
    X(LOSSFREE_COUNTS, "lossfree-counts-bf16", "state", "lossfree-counts-bf16", counts_beyond_bf16, 0, "loads are rounded to 8 bits before the bias moves") \
    X(BIAS_NOT_UPDATED, "bias-not-updated", "state", "bias-not-updated", updates_bias, 0, "state.bias is the bias from before the step")              \
    X(BIAS_IN_EVALUATION, "bias-in-evaluation", "state", "bias-in-evaluation", evaluates_bias, 0, "evaluation moves the bias: state.bias appears")    \
    X(BIAS_LAST_MICRO, "bias-last-micro-batch", "state", "bias-last-micro-batch", bias_in_micro_batches, 0, "the bias moves by the last micro-batch's loads") \
    X(EMA_LAST_POOL, "ema-last-pool", "state", "ema-last-pool", has_pools, 0, "the cutoff of a micro-batch is its last pool's, not the mean")         \
    X(BIAS_RULE, "bias-rule-exchanged", "state", "bias-rule-exchanged", updates_bias, 0, "loss-free for proportional, or back")                       \
    X(LOAD_IGNORED, "global-load-ignored", "state", "global-load-ignored", has_given_load, 0, "the step's own loads where those of all ranks are given")  \
    X(EMA_TWICE, "ema-moved-twice", "state", "ema-moved-twice", updates_ema, 0, "the average is updated twice")                                           \
    X(EMA_PER_MICRO, "ema-per-micro-batch", "state", "ema-per-micro-batch", ema_in_micro_batches, 0, "the average is updated after each micro-batch")     \
    X(EMA_SUMMED, "ema-cutoffs-summed", "state", "ema-cutoffs-summed", ema_in_micro_batches, 0, "the average takes the sum of the micro-batches' cutoffs") \
    X(EMA_DECAY, "ema-decay", "state", "ema-decay", updates_ema, 0, "1 - b is ten times as large")                                                        \
    X(EMA_LOST, "ema-not-restored", "state", "state-not-restored", keeps_thresholds, 0, "thresholds come from an average of 0")                           \
    X(EMA_BF16, "ema-in-bf16", "state", "state-in-short-format", updates_ema, 0, "the average is kept in 8 bits")                                         \
    X(BIAS_BF16, "bias-in-bf16", "state", "state-in-short-format", updates_bias, 0, "the bias is kept in 8 bits")                                         \
    X(LOADS_TWICE, "loads-counted-twice", "state", "loads-counted-twice", moves_in_proportion, 0, "each slot counts twice in the loads of the bias")

#define CD_FORWARD_FAULTS(X)                                                                                                                          \
    X(GATE_FORGOTTEN, "gate-forgotten", "forward", "gate-forgotten", has_slots, 0, "y sums f(x) unweighted; route.slot_weight is right")              \
    X(GATE_TWICE, "gate-twice", "forward", "gate-twice", has_slots, 0, "y sums w w f(x)")                                                             \
    X(GATE_BEFORE_ACTIVATION, "gate-before-activation", "forward", "gate-before-activation", has_slots, 0, "A = relu(w H)^2, and f(x) enters y unweighted") \
    X(BIASED_GATE, "biased-score-as-gate", "forward", "biased-score-as-gate", keeps_bias, 0, "p = gate(r + b)")                                       \
    X(RELU_NOT_SQUARED, "relu-not-squared", "forward", "relu-not-squared", has_rows, 0, "A = relu(H), shared expert included")                        \
    X(SQUARE_WITHOUT_RELU, "square-without-relu", "forward", "square-without-relu", has_rows, 0, "A = H^2, shared expert included")                   \
    X(DOWN_TRANSPOSED, "down-transposed", "forward", "down-transposed", is_square, 0, "f(x) = A W_down: routed experts, or the dense layer")          \
    X(UP_TRANSPOSED, "up-transposed", "forward", "up-transposed", is_square, 0, "H = x W_up: routed experts, or the dense layer")                     \
    X(NEIGHBOUR_EXPERT, "neighbour-expert", "forward", "neighbour-expert", many_experts, 0, "expert i computes with the weights of i+1, the last with those of 0") \
    X(NEIGHBOUR_TILE, "last-tile-neighbour", "forward", "neighbour-expert", many_experts, 16, "the last load mod 16 rows of an expert are computed with the weights of i+1") \
    X(EMPTY_EXPERT_WRITES, "empty-expert-writes", "forward", NULL, has_empty_expert, 0, "an empty expert computes one row all the same, and writes it over the next expert's first") \
    X(LAST_ROW_DROPPED, "last-row-dropped", "forward", "last-row-dropped", has_rows, 0, "f(x) of an expert's last slot is 0")                         \
    X(TILE_16_DROPPED, "last-tile-dropped-16", "forward", "last-tile-dropped", has_rows, 16, "f(x) of an expert's last load mod 16 slots is 0")       \
    X(TILE_64_DROPPED, "last-tile-dropped-64", "forward", "last-tile-dropped", has_rows, 64, "f(x) of an expert's last load mod 64 slots is 0")       \
    X(TILE_128_DROPPED, "last-tile-dropped-128", "forward", "last-tile-dropped", has_rows, 128, "f(x) of an expert's last load mod 128 slots is 0")   \
    X(SLOT_TWICE, "slot-added-twice", "forward", "slot-added-twice", has_slots, 0, "each token's first slot is added to y twice")                     \
    X(SLOT_TWICE_ONCE, "one-slot-added-twice", "forward", "slot-added-twice", has_slots, 0, "the same for one token")                                 \
    X(SECOND_OVERWRITES, "second-slot-overwrites", "forward", "second-slot-overwrites", has_fanout, 0, "of a token's slots only the last is in y")    \
    X(SHARED_FORGOTTEN, "shared-forgotten", "forward", "shared-forgotten", has_shared, 0, "y without the shared expert")                              \
    X(SHARED_GATED, "shared-gated", "forward", "shared-gated", has_shared, 0, "the shared expert's share of y is multiplied by the gate value of expert 0") \
    X(SHARED_TWICE, "shared-twice", "forward", "shared-twice", has_shared, 0, "the shared expert is added to y twice")                                \
    X(INVERSE_Y, "inverse-permutation-y", "forward", "inverse-permutation", has_slots, 0, "y gathers the slots by the inverse of token_slots")        \
    X(ANCHOR_FORGOTTEN, "anchor-forgotten", "forward", "anchor-forgotten", has_anchor, 0, "softmax without the zero logit; where it weighed the shared expert, that weighs 1") \
    X(SOFTMAX_AXIS, "softmax-wrong-axis", "forward", "softmax-wrong-axis", has_plain_softmax, 0, "softmax over the tokens for the experts, or the other way round, and its Jacobian, too") \
    X(SOFTMAX_OVERFLOW, "softmax-overflow", "forward", NULL, has_softmax, 0, "the largest logit is not subtracted: NaN where an exponential overflows") \
    X(FANOUT_WITHOUT_SHARED, "fanout-without-shared", "forward", "fanout-without-shared", has_shared_fanout, 0, "n_t does not count the shared expert") \
    X(NORM_FORGOTTEN, "norm-forgotten", "forward", "norm-forgotten", has_norm, 0, "weights are not divided, nor their gradients")                     \
    X(NORM_OVER_ALL, "norm-over-all", "forward", "norm-over-all", sums_gates, 0, "gates are divided by the sum over all experts")                     \
    X(STALE_ROW, "stale-row", "forward", "stale-rows", always, 0, "a row of y is what an earlier batch left there")                                           \
    X(GARBAGE_TAIL, "uninitialised-tail", "forward", NULL, always, 0, "the last elements of y were never written: huge numbers")                      \
    X(NAN_Y, "nan-in-y", "forward", NULL, always, 0, "one element of y is NaN")                                                                       \
    X(ROWS_EXCHANGED, "rows-exchanged", "forward", NULL, several_tokens, 0, "two rows of y are exchanged")                                            \
    X(ROW_ZERO, "row-zero", "forward", NULL, always, 0, "one row of y is 0")                                                                          \
    X(ALL_ZERO, "all-zero", "forward", NULL, always, 0, "y is 0")                                                                                     \
    X(RETURNS_INPUT, "returns-input", "forward", NULL, always, 0, "y is x")                                                                           \
    X(COLUMNS_SHIFTED, "columns-shifted", "forward", NULL, several_columns, 0, "every row of y is shifted by one column")                             \
    X(GATE_SCALED, "gate-scaled", "forward", "scaled", has_slots, 1e-3, "every slot's weight and its gradient times 1 + amount")                      \
    X(EXPERT_SCALED, "expert-scaled", "forward", "scaled", has_slots, 1e-3, "one expert's f(x) times 1 + amount")                                     \
    X(Y_SCALED, "y-scaled", "forward", "scaled", always, 1e-3, "y times 1 + amount")                                                                  \
    X(OTHER_GATE, "other-gate", "forward", "other-gate", has_plain_gate, 0, "sigmoid where another gate is meant, softmax for sigmoid")               \
    X(GATE_OF_NEIGHBOUR, "gate-of-neighbour", "forward", "gate-of-neighbour", many_experts, 0, "w comes from the gate value of expert i+1")           \
    X(WEIGHTS_TOKEN_ORDER, "weights-in-token-order", "forward", "weights-in-token-order", has_slots, 0, "slot j has the weight of slot token_slots[j], in route.slot_weight, too") \
    X(NORM_ADDED, "norm-added", "forward", "norm-added", has_no_norm, 0, "weights are divided by their sum where the case has no norm")               \
    X(FIRST_EXPERT, "first-expert-everywhere", "forward", "first-expert-everywhere", many_experts, 0, "every expert computes with the weights of expert 0") \
    X(SLOT_FOR_TOKEN, "slot-for-token", "forward", "slot-for-token", has_slots, 0, "H takes row (slot mod N) of x, not the slot's token")                 \
    X(RAW_LOGITS, "raw-logits", "forward", "other-gate", has_plain_gate, 0, "the logits are the gate values")                                             \
    X(SOFTMAX_OF_STEP, "softmax-over-step", "forward", "softmax-over-step", softens_parts, 0, "softmax over the tokens of the step, not of a micro-batch") \
    X(SOFTMAX_LACKS_LAST, "softmax-lacks-last", "forward", "softmax-lacks-last", softens_experts, 0, "the softmax's sum lacks the last expert")           \
    X(NORM_EPSILON, "norm-epsilon", "forward", "norm-epsilon", sums_gates, 1e-5, "the sum of gates + amount")                                             \
    X(NORM_LACKS_LAST, "norm-lacks-last", "forward", "norm-lacks-member", sums_gates, 0, "the sum of gates lacks the token's last slot")                  \
    X(NORM_BEFORE_CAPACITY, "norm-before-capacity", "forward", "norm-before-capacity", clamps_sums, 0, "the sum of the gates of all that pass, taken or not") \
    X(SHARED_WHOLE, "shared-not-divided", "forward", "shared-not-divided", has_shared_fanout, 0, "the shared expert is not divided by the fanout")        \
    X(INPUT_WEIGHTED, "input-weighted", "forward", "gate-before-activation", has_slots, 0, "f(w x), and its gradients, for w f(x)")                       \
    X(GELU, "gelu", "forward", "other-activation", has_rows, 0, "A = GELU(H), shared expert included")                                                    \
    X(ACTIVATION_SKIPS, "activation-skips-columns", "forward", "activation-skips-columns", has_rows, 0, "A = H in every second 16 columns")               \
    X(TERMS_LOST, "terms-lost", "forward", "product-cut", has_odd_width, 16, "H lacks the terms that fill no tile of amount")                             \
    X(LAST_TERM_LOST, "last-term-lost", "forward", "product-cut", has_rows, 0, "f(x) lacks the last term of its sums")                                    \
    X(PAST_END, "product-past-end", "forward", "product-past-end", has_odd_width_of_experts, 0, "H sums on to a multiple of 16, over what follows in gathered x and in W_up") \
    X(OFFSETS_ALIGNED, "offsets-aligned", "forward", "offsets-aligned", many_experts, 0, "offsets of experts are rounded down to multiples of 8, in the forward pass") \
    X(ROW_LIST, "row-list-overflows", "forward", "row-list-overflows", many_experts, 16, "lists of rows have room for amount, and run over")              \
    X(BLOCK_OF_PREVIOUS, "block-of-previous", "forward", "neighbour-expert", many_experts, 0, "the first 16 rows of one expert are computed with the weights of the one before") \
    X(READ_TOO_EARLY, "read-too-early", "forward", "product-cut", has_slots, 0, "the last 8 rows of one expert see half of A")                            \
    X(SLOT_LOST, "slot-lost", "forward", "slot-lost", has_slots, 0, "y lacks each token's last slot")                                                     \
    X(STALE_WEIGHTS, "stale-weights", "forward", "stale-rows", has_slots, 0, "w of the last quarter of the tokens is what memory held")

#define CD_BACKWARD_FAULTS(X)                                                                                                                         \
    X(FACTOR_TWO, "factor-two", "backward", "factor-two", has_rows, 0, "dH = dA relu(H), shared expert included")                                     \
    X(RELU_MASK, "relu-mask", "backward", "relu-mask", has_rows, 0, "dH = dA 2 H, shared expert included")                                            \
    X(GATE_DERIVATIVE, "gate-derivative", "backward", "gate-derivative", is_moe, 0, "dr = dp (and the losses' share)")                                \
    X(DW_FROM_WEIGHTED, "dw-from-weighted", "backward", "dw-from-weighted", has_slots, 0, "dw = <dy, w f(x)>, of the slots")                          \
    X(ROUTER_TERM, "router-term-in-dx", "backward", "router-term-in-dx", is_moe, 0, "dx without dr W_r")                                              \
    X(SHARED_TERM, "shared-term-in-dx", "backward", "shared-term-in-dx", has_shared, 0, "dx without the shared expert's")                             \
    X(SOFTMAX_DIAGONAL, "softmax-diagonal", "backward", "softmax-diagonal", has_softmax, 0, "dr_i = p_i (1 - p_i) dp_i")                              \
    X(ANCHOR_SHARE, "anchor-share", "backward", "anchor-share", anchor_weighs, 0, "the anchor's upstream gradient is taken as 0")                     \
    X(ANCHOR_TERM, "anchor-out-of-jacobian", "backward", "anchor-out-of-jacobian", has_anchor, 0, "the Jacobian's sum runs over the experts alone")   \
    X(UNSELECTED, "gate-gradient-unselected", "backward", "gate-gradient-unselected", has_slots, 0, "dp of a token's unselected gates is the dw of its first slot, not 0") \
    X(NORM_GRADIENT, "norm-gradient", "backward", "norm-gradient", sums_gates, 0, "dp = dw / T: the sum T is taken as a constant")                    \
    X(FANOUT_GRADIENT, "fanout-gradient", "backward", "fanout-gradient", has_fanout_norm, 0, "dp = dw, not divided by n_t")                           \
    X(AUX_MISSING, "aux-gradient-missing", "backward", "aux-gradient-missing", has_aux, 0, "the balancing loss has no gradient")                      \
    X(AUX_DOUBLED, "aux-gradient-doubled", "backward", "aux-gradient-doubled", has_aux, 0, "the balancing loss's gradient counts twice")              \
    X(AUX_THROUGH_F, "aux-gradient-through-f", "backward", "aux-gradient-through-f", has_aux, 0, "the balancing loss's gradient flows through F, too: + P_i n/(K N) on the slots") \
    X(Z_MISSING, "z-gradient-missing", "backward", "z-gradient-missing", has_z_loss, 0, "the z-loss has no gradient")                                 \
    X(LOSS_COEFFICIENT, "loss-with-coefficient", "backward", "loss-with-coefficient", has_loss, 0, "loss.* include their coefficients")               \
    X(LOSS_SUM, "loss-summed-over-micro-batches", "backward", "loss-summed-over-micro-batches", has_loss, 0, "loss.* is the sum over the micro-batches, not the mean") \
    X(EMPTY_GRADIENT, "empty-expert-gradient", "backward", "empty-expert-gradient", has_empty_expert, 0, "dW of an empty expert is what was in memory") \
    X(WEIGHT_MISSING, "weight-missing-in-dO", "backward", "weight-missing-in-dO", has_slots, 0, "dO = dy for the slots")                              \
    X(ORDER_UP, "token-order-up", "backward", "token-order-up", has_slots, 0, "dW_up takes row (slot mod N) of x, not the slot's token")              \
    X(ORDER_DOWN, "token-order-down", "backward", "token-order-down", has_slots, 0, "dW_down takes row (slot mod N) of dy, not the slot's token")     \
    X(INVERSE_DX, "inverse-permutation", "backward", "inverse-permutation", has_slots, 0, "dx gathers the slots by the inverse of token_slots")       \
    X(LAST_TOKEN_DW, "last-token-in-dw", "backward", "last-token-in-dw", has_rows, 0, "an expert's last token is missing in dW_up and dW_down")       \
    X(DX_DROPPED, "slot-dx-dropped", "backward", "slot-dx-dropped", has_slots, 0, "dx without each token's last slot")                                \
    X(DX_LOST, "one-slot-dx-lost", "backward", "slot-dx-dropped", has_slots, 0, "the same for one token")                                             \
    X(DX_OVERWRITES, "dx-overwrites", "backward", "dx-overwrites", has_fanout, 0, "of a token's slots only the last is in dx")                        \
    X(NEIGHBOUR_BACKWARD, "neighbour-expert-backward", "backward", "neighbour-expert-backward", many_experts, 0, "dA and dx through the weights of expert i+1") \
    X(DW_EXCHANGED, "gradients-exchanged", "backward", NULL, many_experts, 0, "dW_up of the first two experts are exchanged")                         \
    X(NAN_DX, "nan-in-dx", "backward", NULL, always, 0, "one element of dx is NaN")                                                                   \
    X(NAN_DW, "nan-in-dw", "backward", NULL, always, 0, "one element of dW_up is NaN")                                                                \
    X(DX_SCALED, "dx-scaled", "backward", "scaled", always, 1e-3, "dx times 1 + amount")                                                              \
    X(DUP_SCALED, "w-up-scaled", "backward", "scaled", always, 1e-3, "dW_up times 1 + amount")                                                        \
    X(DDOWN_SCALED, "w-down-scaled", "backward", "scaled", always, 1e-3, "dW_down times 1 + amount")                                                  \
    X(DROUTER_SCALED, "w-router-scaled", "backward", "scaled", is_moe, 1e-3, "dW_r times 1 + amount")                                                 \
    X(DSHARED_SCALED, "shared-gradient-scaled", "backward", "scaled", has_shared, 1e-3, "the shared expert's dW_up and dW_down times 1 + amount")     \
    X(EXPERT_DW_SCALED, "expert-gradient-scaled", "backward", "scaled", has_slots, 1e-3, "dW_up and dW_down of one expert times 1 + amount")          \
    X(RELU_DERIVATIVE, "relu-derivative", "backward", "relu-derivative", has_rows, 0, "dH = dA [H > 0], shared expert included")                      \
    X(ACT_FOR_RELU, "activation-for-relu", "backward", "activation-for-relu", has_rows, 0, "dH = dA 2 A, shared expert included")                     \
    X(WEIGHT_TWICE, "weight-twice-in-dO", "backward", "weight-twice-in-dO", has_slots, 0, "dO = w w dy for the slots")                                \
    X(GRADIENT_AVERAGED, "gradient-averaged", "backward", "gradient-averaged", has_rows, 0, "dW_up and dW_down are divided by the expert's load")     \
    X(DOWN_BEFORE_SQUARE, "down-before-square", "backward", "down-before-square", has_rows, 0, "dW_down = dO' relu(H), shared expert included")       \
    X(DR_OF_SELECTED, "dr-of-selected-alone", "backward", "dr-of-selected-alone", is_moe, 0, "dr is 0 off the slots")                                 \
    X(ROUTED_TERM, "routed-term-in-dx", "backward", "routed-term-in-dx", has_slots, 0, "dx without the routed experts' shares")                       \
    X(AUX_OF_SELECTED, "aux-gradient-of-selected", "backward", "aux-gradient-of-selected", has_aux, 0, "the balancing loss's gradient reaches the slots alone") \
    X(AUX_ERROR, "aux-error-exchanged", "backward", "aux-error-exchanged", has_aux, 0, "F where F - 1 is meant, or back")                             \
    X(Z_DOUBLED, "z-gradient-doubled", "backward", "z-gradient-doubled", has_z_loss, 0, "the z-loss's gradient counts twice")                         \
    X(AUX_SCALED, "aux-gradient-scaled", "backward", "scaled", has_aux, 0.5, "the balancing loss's gradient times 1 + amount")                        \
    X(Z_SCALED, "z-gradient-scaled", "backward", "scaled", has_z_loss, 0.5, "the z-loss's gradient times 1 + amount")                                 \
    X(COEFFICIENT_MISSING, "loss-coefficient-missing", "backward", "loss-coefficient-missing", has_loss, 0, "the losses' gradients lack their coefficients") \
    X(AUX_NOT_OVER_K, "aux-not-over-k", "backward", "aux-convention", has_aux, 0, "F is not divided by K")                                                \
    X(AUX_FIRST_CHOICES, "aux-first-choices", "backward", "aux-convention", has_own_aux, 0, "F counts first choices alone")                               \
    X(AUX_RUNNING, "aux-running", "backward", "aux-convention", has_own_aux, 0, "F counts the micro-batches so far")                                      \
    X(AUX_IN_TILES, "aux-in-tiles", "backward", "aux-convention", has_own_aux, 0, "F counts loads rounded up to multiples of 16")                         \
    X(AUX_LACKS_LAST, "aux-lacks-last", "backward", "aux-convention", has_own_aux, 0, "the balancing loss lacks the last expert")                         \
    X(GRADIENTS_SCALED, "gradients-scaled", "backward", "scaled", always, 3, "all gradients but the losses' times 1 + amount")                            \
    X(ROUTER_DETACHED, "router-detached", "backward", "router-detached", has_slots, 0, "no gradient from the slots to the gates")                         \
    X(ROUTER_LOCAL, "router-gradient-local", "backward", "router-gradient-local", many_experts, 0, "gates of the first half of the experts alone get a gradient from their slots") \
    X(STALE_DW, "stale-dw", "backward", "stale-rows", has_slots, 0, "dw of slot 0 is what memory held")                                                   \
    X(NAN_OF_EMPTY, "nan-of-empty", "backward", "empty-expert-gradient", has_empty_expert, 0, "dW of an empty expert is NaN")

#define CD_LAYOUT_FAULTS(X)                                                                                                                           \
    X(OFFSETS_INCLUSIVE, "offsets-inclusive", "layout", "offsets-inclusive", is_moe, 0, "expert_offsets[i] is where expert i ends")                   \
    X(TOKEN_MAJOR, "slots-token-major", "layout", "slots-token-major", has_slots, 0, "slots are numbered token by token, in every tensor of slots, and no list says so")   \
    X(ONE_BASED, "experts-one-based", "layout", "experts-one-based", has_slots, 0, "experts are counted from 1 in slot_expert and topk_expert")       \
    X(MODULO_POOL, "tokens-modulo-pool", "layout", "tokens-modulo-pool", is_cut_up, 0, "tokens are counted from their pool's first in slot_token and topk_token")

#define CD_PRECISION_FAULTS(X)                                                                                                                        \
    X(ACCUMULATOR_BF16, "accumulator-bf16", "precision", "accumulator-bf16", has_rows, 0, "H and f(x) are summed in 8 bits")                          \
    X(SPLIT_BF16, "split-k-bf16", "precision", "accumulator-bf16", has_rows, 0, "H and f(x) are sums of 4 parts, added in 8 bits")                                  \
    X(COMBINE_BF16, "combine-bf16", "precision", "accumulator-bf16", is_moe, 0, "y is rounded to 8 bits after every addition")                        \
    X(DX_BF16, "dx-bf16", "precision", "accumulator-bf16", is_moe, 0, "dx is rounded to 8 bits after every addition of a slot's share")               \
    X(DW_BF16, "dw-bf16", "precision", "accumulator-bf16", has_rows, 0, "dW_up and dW_down are summed over the tokens in 8 bits")                     \
    X(TRUNCATION, "truncation", "precision", "truncation", always, 0, "intermediates and outputs are truncated")                                      \
    X(TRUNCATED_OUTPUTS, "truncated-outputs", "precision", "truncation", always, 0, "y, dx and dW are truncated")                                     \
    X(OUTPUTS_BF16, "rounded-to-bf16", "precision", "rounded-to-bf16", always, 0, "y, dx and dW are rounded to 8 bits")                               \
    X(OUTPUTS_F16, "rounded-to-f16", "precision", "rounded-to-f16", always, 0, "y, dx and dW are rounded to f16")                                     \
    X(OPERANDS_BF16, "operands-bf16", "precision", "operands-bf16", always, 0, "operands of products are rounded to 8 bits")                          \
    X(OPERANDS_TF32, "operands-tf32", "precision", "operands-tf32", always, 0, "operands of products are rounded to 11 bits")                         \
    X(GATES_BF16, "gates-bf16", "precision", "gates-bf16", is_moe, 0, "gates and weights are rounded to 8 bits")                                      \
    X(FLUSHED, "subnormals-flushed", "precision", "subnormals-flushed", always, 0, "operands, intermediates and outputs below the smallest normal number become 0") \
    X(INTERMEDIATES_BF16, "intermediates-bf16", "precision", "intermediates-bf16", always, 0, "H, A, f(x), dO, dA and dH are rounded to 8 bits")      \
    X(ACCUMULATOR_F16, "accumulator-f16", "precision", "accumulator-f16", has_rows, 0, "H and f(x) are summed in 11 bits")

#define CD_ALL_FAULTS(X)                                                                                                                              \
    CD_SELECTION_FAULTS(X) CD_STATE_FAULTS(X) CD_FORWARD_FAULTS(X) CD_BACKWARD_FAULTS(X) CD_LAYOUT_FAULTS(X) CD_PRECISION_FAULTS(X)
/* clang-format on */

#define CD_NUMBER(number, name, stage, explained_by, applies, usual, what) CD_##number,
typedef enum cd_fault_id { CD_ALL_FAULTS(CD_NUMBER) CD_FAULTS, CD_NO_FAULT } cd_fault_id;

#endif
