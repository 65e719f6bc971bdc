"""Memory of a ZeRO-3 learner rank: what it keeps, and what it works with while it updates.

ZeRO (arXiv 1910.02054, sections 3 and 5): Adam in mixed precision keeps 2 bytes a parameter of weights, 2 of gradients
and 12 of optimizer state (float32 weights and both moments); in stage 3 every rank holds 1 / ranks of each. DeepSpeed
gathers what a layer needs and lets it go again. In float32 the weights themselves are the optimizer's copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from configs.schema import RunConfig
from orchestration.memory_terms import BYTES_OF, CUDA_CONTEXT, MIB, Need, Term, either, share
from orchestration.shapes import ModelShape

# DeepSpeed's own defaults, which learner/zero3.py leaves as they are (elements): what is used again within so many
# stays gathered, and the optimizer steps on so many at once.
REUSED_WITHIN = STEPPED_AT_ONCE = 10**9
# As in learner/logprobs.py, which is about tensors: logits at once, and beyond how many they are worked on in parts.
CHUNK, MANY = 2**24, 2**26
GATHER_MIB = 4  # of learner/gather.py
# Resident memory on CPUs beyond the other terms, measured on quickstart.yaml: imported libraries.
LIBRARIES = 470 * MIB

UPDATING, STEPPING, SENDING = "updating", "stepping", "sending weights"
LOADING, LOADING_REFERENCE = "loading the model", "loading the reference policy"
REFERENCE = "reference policy"


def learner_need(config: RunConfig, shape: ModelShape, limit: int | None = None, of: str = "") -> Need:
    """Of the device that one rank computes on: a GPU, or on CPUs its process."""
    return Need("learner rank", learner_phases(config, shape), limit, of)


def learner_phases(config: RunConfig, shape: ModelShape) -> Mapping[str, Sequence[Term]]:
    on_gpu = config.deepspeed.gpus_per_rank > 0
    stays = [*learner_stays(config, shape), *([] if on_gpu else _in_host_memory(config, shape))]
    stepping = [] if on_gpu and config.deepspeed.offload != "none" else [_step(config, shape)]
    bytes_loaded = BYTES_OF[config.model.dtype] if on_gpu else 4
    phases = {
        UPDATING: [*stays, *_working(config, shape)],
        STEPPING: [*stays, *stepping],
        SENDING: [*stays, sending(config, shape)],
        LOADING: [_runtime(config), Term("whole model", shape.parameters * bytes_loaded)],
    }
    if _has_reference(config):
        phases[LOADING_REFERENCE] = _with_whole_reference(config, shape, stays, bytes_loaded)
    return phases


def host_need(config: RunConfig, shape: ModelShape) -> Need | None:
    """What a rank on a GPU takes of its node's own memory; None on CPUs, where it is all one."""
    if config.deepspeed.gpus_per_rank == 0:
        return None
    libraries = Term("libraries", LIBRARIES)
    loading = [libraries, Term("whole model, float32", 4 * shape.parameters)]
    stepping = [_step(config, shape)] if config.deepspeed.offload != "none" else []
    offloaded = [libraries, *_in_host_memory(config, shape)]
    phases = {LOADING: loading, UPDATING: [*offloaded, *stepping]}
    if _has_reference(config):
        phases[LOADING_REFERENCE] = _with_whole_reference(config, shape, offloaded, 4)
    return Need("learner rank, host memory", phases)


def _with_whole_reference(config: RunConfig, shape: ModelShape, stays: Sequence[Term], width: int) -> list[Term]:
    """As in learner/update.py: it is loaded when the policy and its optimizer are there, and then cut into shares.

    width: bytes of one of its parameters.
    """
    offload = "set deepspeed.offload=optimizer" if config.deepspeed.offload == "none" else ""
    less = either("raise deepspeed.ranks", offload, "set grpo.kl.coefficient=0")
    whole = Term(f"whole {REFERENCE}", shape.parameters * width, less)
    return [*(term for term in stays if term.name != REFERENCE), whole]


def learner_stays(config: RunConfig, shape: ModelShape) -> list[Term]:
    """What a rank keeps on its device all the time."""
    kept = [term for term, offloaded in _state(config, shape) if not offloaded]
    return [*kept, _bucket(config), _runtime(config)]


def _in_host_memory(config: RunConfig, shape: ModelShape) -> list[Term]:
    return [term for term, offloaded in _state(config, shape) if offloaded]


def _state(config: RunConfig, shape: ModelShape) -> list[tuple[Term, bool]]:
    """What a rank keeps of the model, and whether that is offloaded."""
    settings, width = config.deepspeed, BYTES_OF[config.model.dtype]
    offload = settings.offload
    more = "raise deepspeed.ranks"
    of_optimizer = either(more, "set deepspeed.offload=optimizer" if offload == "none" else "")
    of_weights = either(more, "set deepspeed.offload=all" if offload != "all" else "")
    whole, trained = share(shape.parameters + _adapters(config, shape), settings.ranks), _trained(config, shape)
    # Both moments; a float32 copy of the weights, unless they are float32 and lie in the same place; and offloaded
    # state has float32 gradients beside it.
    optimizer = 8 + (0 if width == 4 and offload == "none" else 4) + (4 if offload != "none" else 0)
    terms = [
        (Term("weights", whole * width, of_weights), offload == "all"),
        (Term("gradients", trained * width, of_optimizer), offload != "none"),
        (Term("optimizer state", trained * optimizer, of_optimizer), offload != "none"),
    ]
    if _has_reference(config):
        without = either(of_weights, "set grpo.kl.coefficient=0")
        reference = Term(REFERENCE, share(shape.parameters, settings.ranks) * width, without)
        terms.append((reference, offload == "all"))
    return terms


def _working(config: RunConfig, shape: ModelShape) -> list[Term]:
    """What a forward and its backward need."""
    settings, width = config.deepspeed, BYTES_OF[config.model.dtype]
    fewer = "lower deepspeed.tokens_per_micro_batch"
    anew = "" if settings.gradient_checkpointing else "set deepspeed.gradient_checkpointing=true"
    terms = [
        Term("activations", activation_bytes(config, shape), either(anew, fewer)),
        Term("logits", logits_bytes(settings.tokens_per_micro_batch * shape.vocabulary, width), fewer),
    ]
    if settings.ranks > 1 or settings.offload == "all":  # one rank computes on the weights it keeps
        live = REUSED_WITHIN + _bucket_elements(config) + shape.layer_parameters
        terms.append(Term("gathered weights", min(shape.parameters, live) * width))
    if config.model.lora is None:
        whole = max(shape.layer_parameters, shape.embedding_parameters)
        terms.append(Term("whole gradients", whole * width))
    return terms


def activation_bytes(config: RunConfig, shape: ModelShape) -> int:
    """Of a micro-batch of deepspeed.tokens_per_micro_batch tokens.

    Counted as in arXiv 2205.05198, section 4.1, over what the backward of each operation keeps, for layers of this
    type: an RMS norm its input in float32, what it normalised, and its result; attention queries, keys, values and its
    result twice (the scores of flash attention are not kept); the feed-forward part four tensors of its width. With
    gradient checkpointing (section 5) the input of every layer is kept, and one layer is computed anew at a time.
    """
    width, tokens = BYTES_OF[config.model.dtype], config.deepspeed.tokens_per_micro_batch
    norms = 2 * (4 + 2 * width) * shape.hidden
    attention = width * (3 * shape.query_width + 2 * shape.kv_width)
    layer = norms + attention + 4 * width * shape.intermediate
    gradients = width * (3 * shape.intermediate + 2 * shape.hidden)  # of the layer whose backward is under way
    if config.deepspeed.gradient_checkpointing:
        return tokens * (shape.layers * width * shape.hidden + layer + gradients)
    return tokens * (shape.layers * layer + gradients)


def logits_bytes(elements: int, width: int) -> int:
    """Of as many logits, each trained token having a vocabulary of them; at most, every token is trained.

    `learner/logprobs.py`: up to MANY are copied to float32 whole, with three more such tensors in the backward; beyond,
    there are the logits, their gradient in parts and joined, and one CHUNK in float32.
    """
    few = min(elements, MANY) * (width + 16)
    return max(few, 3 * width * elements + 20 * CHUNK) if elements > MANY else few


def sending(config: RunConfig, shape: ModelShape) -> Term:
    """Of rank 0 while it broadcasts: what it gathers, and the buckets it packs; NCCL packs copies, CUDA IPC has one."""
    largest = shape.largest_parameter * BYTES_OF[config.model.dtype]
    buckets = {"nccl": 4, "gloo": 2, "ipc": 1}[config.transfer_backend]
    size = 2 * (GATHER_MIB * MIB + largest) + buckets * (config.sync.bucket_mib * MIB + largest)
    return Term("transfer buckets", size, "lower sync.bucket_mib")


def _step(config: RunConfig, shape: ModelShape) -> Term:
    """The float32 gradients and the roots of second moments, of what is stepped on at once."""
    elements = min(_trained(config, shape), STEPPED_AT_ONCE)
    return Term("optimizer's working memory", 8 * elements, "raise deepspeed.ranks")


def _bucket(config: RunConfig) -> Term:
    size = _bucket_elements(config) * BYTES_OF[config.model.dtype]
    return Term("gradient bucket", size, "lower deepspeed.bucket_mib")


def _bucket_elements(config: RunConfig) -> int:
    return config.deepspeed.bucket_mib << 18


def _runtime(config: RunConfig) -> Term:
    if config.deepspeed.gpus_per_rank > 0:
        return Term("CUDA context", CUDA_CONTEXT)
    return Term("libraries", LIBRARIES)


def _trained(config: RunConfig, shape: ModelShape) -> int:
    """Trained parameters a rank holds."""
    trained = shape.parameters if config.model.lora is None else _adapters(config, shape)
    return share(trained, config.deepspeed.ranks)


def _adapters(config: RunConfig, shape: ModelShape) -> int:
    lora = config.model.lora
    return 0 if lora is None else shape.adapter_parameters(lora.rank, lora.targets)


def _has_reference(config: RunConfig) -> bool:
    """As in learner/update.py: with adapters the policy without them serves."""
    kl = config.grpo.kl
    return kl.coefficient > 0 and (kl.reference is not None or config.model.lora is None)
