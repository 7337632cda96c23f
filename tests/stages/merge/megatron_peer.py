"""Megatron-Core itself on CPUs, started by the test beside it.

It loads a checkpoint under a split over ranks, compares its logits with the Hugging Face model's, and saves a
checkpoint of its own.

usage: python megatron_peer.py CHECKPOINT MODEL SAVE_TO TP PP EP      with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT

Megatron asks for CUDA in many places; here each of them is answered by the CPU. Nothing else of it is changed.
"""

import contextlib
import multiprocessing
import sys

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


def on_cpu(device):
    return CPU if isinstance(device, int) or (device is not None and torch.device(device).type == "cuda") else device


class CudaIsCpu(TorchFunctionMode):
    """Tensors that are asked for on a GPU are made on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = on_cpu(kwargs["device"])
        if func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], (str, torch.device)):
            args = (args[0], on_cpu(args[1]), *args[2:])
        if func is torch.Tensor.cuda:
            return args[0]
        kwargs.pop("pin_memory", None)
        return func(*args, **kwargs)


def nothing(*_, **__):
    return None


def pretend():
    """Streams, events and generators of CUDA that do nothing or are the CPU's."""
    cuda = torch.cuda
    names = ("wait_stream", "wait_event", "synchronize", "wait", "record")
    stream = type("Stream", (), {"__init__": nothing, **dict.fromkeys(names, nothing)})
    stream.record_event = lambda *_: stream()
    cuda.Stream = cuda.Event = stream
    cuda.current_device, cuda.synchronize = (lambda: CPU), nothing
    cuda.current_stream = cuda.default_stream = lambda *_: stream()
    cuda.stream = lambda *_: contextlib.nullcontext()
    cuda.manual_seed, cuda.get_rng_state = torch.manual_seed, lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    cuda.nvtx.range_push = cuda.nvtx.range_pop = nothing
    import megatron.core.tensor_parallel.random as random
    import megatron.core.transformer.moe.moe_utils as moe_utils
    from megatron.core.transformer.moe import token_dispatcher

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    moe_utils.te_general_gemm = None  # a name that it forgets without Transformer Engine

    def as_it_is(tensor, as_numpy=False, **_):
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    token_dispatcher.maybe_move_tensor_to_cpu = as_it_is
    CudaIsCpu().__enter__()


def build(config, tp, pp, ep):
    """The model's stage of this rank."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    is_moe = config.model_type == "qwen3_moe"
    sparse = (
        {
            "num_moe_experts": config.num_experts,
            "moe_router_topk": config.num_experts_per_tok,
            "moe_ffn_hidden_size": config.moe_intermediate_size,
            "moe_router_load_balancing_type": "none",
            "moe_token_dispatcher_type": "alltoall",
            "moe_router_pre_softmax": not config.norm_topk_prob,
        }
        if is_moe
        else {}
    )
    own = TransformerConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads,
        kv_channels=config.head_dim,
        ffn_hidden_size=config.intermediate_size,
        layernorm_epsilon=config.rms_norm_eps,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        qk_layernorm="qwen3" in config.model_type,
        hidden_dropout=0,
        attention_dropout=0,
        use_cpu_initialization=True,
        bias_activation_fusion=False,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        expert_model_parallel_size=ep,
        sequence_parallel=False,
        pipeline_dtype=torch.float32,
        params_dtype=torch.float32,
        batch_p2p_comm=False,
        **sparse,
    )
    spec = (
        get_gpt_decoder_block_spec(own, use_transformer_engine=False, normalization="RMSNorm")
        if is_moe
        else get_gpt_layer_local_spec(qk_layernorm=own.qk_layernorm, normalization="RMSNorm")
    )
    return own, GPTModel(
        own,
        spec,
        vocab_size=-(-config.vocab_size // tp) * tp,  # padded, as Megatron does
        max_sequence_length=config.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=False,
        share_embeddings_and_output_weights=config.tie_word_embeddings,
        position_embedding_type="rope",
        rotary_base=config.rope_parameters["rope_theta"],
    )


def logits_of(own, model, ids):
    """Through Megatron's own schedule; None where this rank has not the last stage."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    mask = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()[None, None]
    seen = []

    def step(_, model):
        def keep(output):
            seen.append(output)
            return output.sum(), {}

        return model(ids, torch.arange(ids.shape[1])[None], mask), keep

    with torch.no_grad():
        get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=None,
            model=model,
            num_microbatches=1,
            seq_length=ids.shape[1],
            micro_batch_size=1,
            forward_only=True,
        )
    return seen[0] if seen else None


def main(checkpoint, folder, target, tp, pp, ep):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pretend()
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(tp, pp, expert_model_parallel_size=ep, expert_tensor_parallel_size=1)
    model_parallel_cuda_manual_seed(1)
    own, model = build(theirs.config, tp, pp, ep)
    model.eval()
    state = dist_checkpointing.load(model.sharded_state_dict(), checkpoint)
    model.load_state_dict({name: value for name, value in state.items() if torch.is_tensor(value)}, strict=False)
    ids = torch.randint(0, theirs.config.vocab_size, (1, 23), generator=torch.Generator().manual_seed(1))
    found = logits_of(own, model, ids)
    if found is not None:
        with torch.no_grad():
            wanted = theirs(ids).logits
        off = float((found[..., : wanted.shape[-1]] - wanted).abs().max())
        print(f"DIFFERENCE {off:.3e} of {float(wanted.std()):.3f}", flush=True)
    dist_checkpointing.save(model.sharded_state_dict(), target)
    dist.barrier()
    for child in multiprocessing.active_children():  # writers that Megatron keeps
        child.kill()


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
