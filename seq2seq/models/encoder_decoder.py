"""The whole network: encoder, bridge and decoder, for teacher forcing and for decoding.

`encoder_decoder` builds it from plain values, the ones that a config names and a checkpoint keeps.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seq2seq.models.attention import Attention, Memory
from seq2seq.models.bridge import Bridge
from seq2seq.models.copy_mechanism import CopyMixture, SourceWords
from seq2seq.models.decoder import Decoder, DecoderOutput, DecoderState
from seq2seq.models.encoder import Encoder, EncoderLayer
from seq2seq.models.recurrent import RecurrentLayer

FED_TOKENS = ("sample", "argmax")


class Feeding(NamedTuple):
    """Which tokens the decoder is fed in training, after the begin symbol.

    Args:
        teacher_forcing: probability of the reference's token, a coin for each.
        fed: of the others, ``sample``, drawn from the model's distribution, or ``argmax``, its
            most probable token.
        unknown_id: as what a copied word is read that the target vocabulary lacks.
    """

    teacher_forcing: float
    fed: str
    unknown_id: int | None = None


class DecodingState(NamedTuple):
    """All that one decoding step needs of the steps before and of the source."""

    decoder: DecoderState
    memory: Memory | None
    words: SourceWords | None = None

    @property
    def extended_source(self) -> Tensor | None:
        """The extended ids of the sources, if words of them may be copied."""
        return None if self.words is None else self.words.ids

    def select(self, rows: Tensor) -> "DecodingState":
        """The hypotheses ``rows`` (int64 ``[rows]``) in that order; repeats are allowed."""
        memory = None if self.memory is None else self.memory.select(rows)
        words = None if self.words is None else self.words.select(rows)
        return DecodingState(self.decoder.select(rows), memory, words)


class EncoderDecoder(nn.Module):
    """Sequence in, sequence out, both of unknown length (Sutskever, Vinyals and Le 2014).

    One that copies needs the extended ids of its sources, see
    :class:`~seq2seq.models.copy_mechanism.CopyMechanism`; its outputs are extended ids as well.

    Args:
        encoder, bridge, decoder: ready modules that fit together.
    """

    def __init__(self, *, encoder: Encoder, bridge: Bridge, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.bridge = bridge
        self.decoder = decoder

    @property
    def copies(self) -> bool:
        """Whether words of the source may be copied."""
        return self.decoder.copy_mechanism is not None

    def forward(
        self,
        source: Tensor,
        source_lengths: Tensor,
        decoder_input: Tensor,
        feeding: Feeding | None = None,
        extended_source: Tensor | None = None,
    ) -> Tensor:
        """Features of every target position; :meth:`logits` makes scores of them.

        Teacher forced, or with some of the model's own tokens, and then step by step.

        Shape:
            source: int64 ``[batch, source_time]``; source_lengths: int64 ``[batch]``;
            decoder_input: int64 ``[batch, target_time]``, beginning with the begin symbol;
            extended_source: int64 ``[batch, source_time]``, None unless outputs can be copies;
            returns ``[batch, target_time, hidden]``, with an extended source
            ``[batch, target_time, hidden + source_time]``.
        """
        state = self.start(source, source_lengths, extended_source)
        if feeding is not None and feeding.teacher_forcing < 1:
            return self._features_on_own_tokens(decoder_input, state, feeding)
        output: DecoderOutput = self.decoder(decoder_input, state.decoder, state.memory)
        return self._features(output, state.words)

    def _features(self, output: DecoderOutput, words: SourceWords | None) -> Tensor:
        """What :meth:`logits` reads: the decoder's features, and beside them the copy scores."""
        if words is None:
            return output.features
        mechanism, gate, alignment = self.decoder.copy_mechanism, output.copy_gate, output.alignment
        if mechanism is None or gate is None or alignment is None:
            raise ValueError("extended_source is given, but this network copies nothing")
        scores = mechanism.scores(gate, alignment, words)
        return torch.cat([output.features.to(scores.dtype), scores], dim=2)

    def _features_on_own_tokens(
        self, reference: Tensor, state: DecodingState, feeding: Feeding
    ) -> Tensor:
        own = torch.rand(reference.shape, device=reference.device) >= feeding.teacher_forcing
        # Known before the steps begin, so that none of them waits for a GPU.
        own_rows = torch.split(own.t().nonzero()[:, 1], own.sum(dim=0).tolist())
        decoder = state.decoder
        features: list[Tensor] = []
        for time, tokens in enumerate(reference.unbind(dim=1)):
            if time:
                rows = own_rows[time]
                chosen = self._own_tokens(features[-1].detach(), rows, state, feeding)
                tokens = tokens.index_copy(0, rows, chosen)
            if self.decoder.begins_chunk(time):
                decoder = decoder.detach()
            output = self.decoder.step(tokens, decoder, state.memory)
            assert output.state is not None
            decoder = output.state
            features.append(self._features(output, state.words))
        return torch.cat(features, dim=1)

    @torch.no_grad()
    def _own_tokens(
        self, features: Tensor, rows: Tensor, state: DecodingState, feeding: Feeding
    ) -> Tensor:
        """What the model would say: ``[rows]`` of ``[batch, 1, hidden]``."""
        features = features.index_select(0, rows).squeeze(1)
        if state.extended_source is None:
            return _chosen(self.logits(features), feeding.fed)
        mixture = self.mixture(features, state.extended_source.index_select(0, rows))
        chosen = _chosen(mixture.log_probabilities(), feeding.fed)
        if feeding.unknown_id is None:
            raise ValueError("a network that copies is fed its own tokens with an unknown_id only")
        return chosen.masked_fill(chosen >= mixture.vocabulary_size, feeding.unknown_id)

    def logits(self, features: Tensor) -> Tensor:
        """Scores over the target vocabulary, ``[..., hidden]`` to ``[..., vocabulary]``.

        Apart from :meth:`forward`, so that only real target positions pay for the vocabulary.
        """
        if self.decoder.copy_mechanism is not None:
            raise ValueError(
                "this network copies words of the source and needs their extended ids: encode the "
                "split with copies=True"
            )
        logits: Tensor = self.decoder.output(features)
        return logits

    def mixture(self, features: Tensor, extended_source: Tensor) -> CopyMixture:
        """In place of :meth:`logits` if words of the source may be copied.

        Shape:
            features: ``[rows, hidden + source_time]``; extended_source: ``[rows, source_time]``.
        """
        mechanism = self.decoder.copy_mechanism
        assert mechanism is not None
        sizes = [self.decoder.output_size, extended_source.size(1)]
        own, scores = torch.split(features, sizes, dim=1)
        own = own.to(self.decoder.attention_vector.weight.dtype)
        return mechanism.mixture(self.decoder.output(own), scores, extended_source)

    def distribution(
        self, features: Tensor, extended_source: Tensor | None
    ) -> Tensor | CopyMixture:
        """What a loss is of: :meth:`mixture` if words of the source may be copied, or logits."""
        if extended_source is None:
            return self.logits(features)
        return self.mixture(features, extended_source)

    def log_probabilities(self, features: Tensor, extended_source: Tensor | None) -> Tensor:
        """Of every token, in float32 or wider: the logarithm of :meth:`distribution`."""
        distribution = self.distribution(features, extended_source)
        if isinstance(distribution, CopyMixture):
            return distribution.log_probabilities()
        exact = torch.promote_types(distribution.dtype, torch.float32)
        return torch.log_softmax(distribution, dim=-1, dtype=exact)

    def start(
        self, source: Tensor, source_lengths: Tensor, extended_source: Tensor | None = None
    ) -> DecodingState:
        """Encode the source: the state before the first target token."""
        encoded = self.encoder(source, source_lengths)
        memory = None
        if self.decoder.attention is not None:
            memory = self.decoder.attention.memory(encoded.outputs, encoded.mask)
        state = self.decoder.first_state(self.bridge(encoded.state), memory)
        words = None if extended_source is None else SourceWords.of(extended_source)
        return DecodingState(state, memory, words)

    def step(
        self, tokens: Tensor, state: DecodingState
    ) -> tuple[Tensor, DecodingState, Tensor | None]:
        """Log-probabilities of the next token after one more token of each hypothesis.

        Shape:
            tokens: int64 ``[batch]``, of the target vocabulary; returns log-probabilities
            ``[batch, vocabulary]``, with copies ``[batch, vocabulary + source_time]`` (float32, or
            float64 in a float64 model), the state after, and the alignment
            ``[batch, source_time]`` or None.
        """
        output = self.decoder.step(tokens, state.decoder, state.memory)
        assert output.state is not None
        features = self._features(output, state.words).squeeze(1)
        log_probabilities = self.log_probabilities(features, state.extended_source)
        alignment = None if output.alignment is None else output.alignment.squeeze(1)
        return log_probabilities, state._replace(decoder=output.state), alignment

    def recurrent_layers(self) -> dict[str, RecurrentLayer]:
        """Every recurrent layer by name, in the order in which the signal passes them."""
        layers: dict[str, RecurrentLayer] = {}
        for index, pair in enumerate(self.encoder.layers):
            assert isinstance(pair, EncoderLayer)
            layers[f"encoder/layer{index}/forward"] = pair.forward_layer
            if pair.backward_layer is not None:
                layers[f"encoder/layer{index}/backward"] = pair.backward_layer
        for index, layer in enumerate(self.decoder.layers):
            assert isinstance(layer, RecurrentLayer)
            layers[f"decoder/layer{index}"] = layer
        return layers


def _chosen(logits: Tensor, how: str) -> Tensor:
    """A token of each row: the most probable, or one that is drawn."""
    if how == "argmax" or not len(logits):
        return logits.argmax(dim=1)
    exact = torch.promote_types(logits.dtype, torch.float32)
    probabilities = torch.softmax(logits, dim=1, dtype=exact)
    # As torch.multinomial draws one token, but without its check, which waits for a GPU.
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(dim=1)


def encoder_decoder(
    *,
    source_vocabulary_size: int,
    target_vocabulary_size: int,
    pad_id: int,
    cell: str = "lstm",
    embedding_size: int = 256,
    embedding_rank: int | None = None,
    hidden_size: int = 256,
    projection_size: int | None = None,
    encoder_layers: int = 1,
    bidirectional: bool = True,
    bidirectional_layers: int | None = None,
    decoder_layers: int | None = None,
    decoder_hidden_size: int | None = None,
    attention: str = "general",
    attention_size: int | None = None,
    attention_heads: int = 1,
    attention_filters: int | None = None,
    attention_kernel: int | None = None,
    coverage: bool = False,
    local_attention: str = "none",
    attention_window: int | None = None,
    query_state: str = "current",
    input_feeding: bool = False,
    bridge: str = "linear",
    layer_connection: str = "none",
    copy_mechanism: bool = False,
    embedding_dropout: float = 0.0,
    layer_dropout: float = 0.0,
    output_dropout: float = 0.0,
    word_dropout: float = 0.0,
    weight_dropout: float = 0.0,
    zoneout_hidden: float = 0.0,
    zoneout_cell: float = 0.0,
    truncation: int | None = None,
    variational_dropout: bool = False,
    tie_embeddings: bool = False,
    share_embeddings: bool = False,
    reverse_source: bool = False,
) -> EncoderDecoder:
    """Build a network from plain values.

    Args:
        source_vocabulary_size, target_vocabulary_size: numbers of tokens.
        pad_id: the padding token of both sides.
        cell: one of :data:`~seq2seq.models.recurrent.CELLS`, in encoder and decoder.
        embedding_size: width of both embeddings.
        embedding_rank: width of their tables, where a projection to ``embedding_size`` follows;
            without one if None.
        hidden_size: width of each direction of the encoder's layers.
        projection_size: width of the hidden states of the LSTMs on both sides, and of what is read
            off them, where a projection follows; without one if None.
        encoder_layers: depth of the encoder.
        bidirectional: whether the encoder scans in both directions.
        bidirectional_layers: how many of its layers do, from the bottom; all if None.
        decoder_layers: depth of the decoder; as the encoder's if None.
        decoder_hidden_size: width of the decoder; ``hidden_size`` if None.
        attention: ``none``, ``additive``, ``dot``, ``general``, ``scaled_dot`` or ``location``.
        attention_size: width of the additive score, and of all heads together; the decoder's width
            if None.
        attention_heads: how many heads the attention has.
        attention_filters, attention_kernel: of ``location``, how many filters see how many source
            positions each; 10 and 15 if None.
        coverage: whether the sum of all earlier alignments is a term of the additive score.
        local_attention: ``none``, ``monotonic`` or ``predictive``.
        attention_window: source positions that local attention reads to both sides; 10 if None.
        query_state: which decoder state asks the attention, ``current`` or ``previous``.
        input_feeding: whether the answer of the attention is an input of the recurrence.
        bridge: ``zero``, ``copy`` or ``linear``.
        layer_connection: ``none``, ``residual`` or ``highway``, around every layer but the first of
            each stack; without attention not around the encoder's top layer, whose outputs nothing
            reads.
        copy_mechanism: words of the source may be outputs, also those that the target vocabulary
            lacks; needs attention.
        embedding_dropout: share of embedding units dropped, on both sides.
        layer_dropout: share of units dropped between layers.
        output_dropout: share of features dropped before the output layer.
        word_dropout: share of words whose embedding is dropped, on both sides.
        weight_dropout: share of hidden-to-hidden weights dropped, in every recurrent layer.
        zoneout_hidden, zoneout_cell: share of hidden and of cell units that stay what they were,
            in every recurrent layer.
        truncation: timesteps within which gradients go back through time in training, in every
            recurrent layer, encoder and decoder each counting from its own first; all if None.
        variational_dropout: draw embedding, layer, output and word dropout once a sequence instead
            of once a timestep.
        tie_embeddings: the output layer uses the target embedding's weights.
        share_embeddings: encoder and decoder use one embedding; with ``tie_embeddings`` as well,
            this is the three-way weight tying of Press and Wolf 2017, section 3.
        reverse_source: read the source last to first.

    Raises:
        ValueError: naming the argument, its value and the rule, where values don't fit together.
    """
    sizes = {
        "embedding_size": embedding_size,
        "embedding_rank": embedding_rank,
        "hidden_size": hidden_size,
        "projection_size": projection_size,
        "encoder_layers": encoder_layers,
        "bidirectional_layers": bidirectional_layers,
        "decoder_layers": decoder_layers,
        "decoder_hidden_size": decoder_hidden_size,
        "attention_size": attention_size,
        "attention_heads": attention_heads,
        "attention_filters": attention_filters,
        "attention_kernel": attention_kernel,
        "attention_window": attention_window,
        "truncation": truncation,
    }
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} is {size}, but it must be at least 1")
    shares = {
        "embedding_dropout": embedding_dropout,
        "layer_dropout": layer_dropout,
        "output_dropout": output_dropout,
        "word_dropout": word_dropout,
        "weight_dropout": weight_dropout,
        "zoneout_hidden": zoneout_hidden,
        "zoneout_cell": zoneout_cell,
    }
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name} is {share}, but it must be at least 0 and below 1")
    decoder_layers = encoder_layers if decoder_layers is None else decoder_layers
    decoder_hidden_size = hidden_size if decoder_hidden_size is None else decoder_hidden_size
    if layer_dropout and max(encoder_layers, decoder_layers) == 1:
        raise ValueError(
            f"layer_dropout is {layer_dropout}, but encoder and decoder have one layer each and "
            "nothing lies between: use embedding_dropout or output_dropout, or more layers"
        )
    drawn_by_time = (embedding_dropout, layer_dropout, output_dropout, word_dropout)
    if variational_dropout and not any(drawn_by_time):
        raise ValueError(
            "variational_dropout=true says how dropout is drawn, but none of embedding_dropout, "
            "layer_dropout, output_dropout and word_dropout is above 0: set one, or "
            "variational_dropout=false"
        )
    if share_embeddings and source_vocabulary_size != target_vocabulary_size:
        raise ValueError(
            "share_embeddings=true needs one vocabulary for both sides, but the source has "
            f"{source_vocabulary_size} tokens and the target {target_vocabulary_size}: set "
            "tokenizer.shared=true"
        )
    encoder = Encoder(
        vocabulary_size=source_vocabulary_size,
        pad_id=pad_id,
        cell=cell,
        embedding_size=embedding_size,
        embedding_rank=embedding_rank,
        hidden_size=hidden_size,
        projection_size=projection_size,
        layers=encoder_layers,
        bidirectional=bidirectional,
        bidirectional_layers=bidirectional_layers,
        layer_connection=layer_connection,
        outputs_read=attention != "none",
        embedding_dropout=embedding_dropout,
        layer_dropout=layer_dropout,
        word_dropout=word_dropout,
        weight_dropout=weight_dropout,
        zoneout_hidden=zoneout_hidden,
        zoneout_cell=zoneout_cell,
        truncation=truncation,
        variational_dropout=variational_dropout,
        reverse_source=reverse_source,
    )
    joined = Bridge(
        kind=bridge,
        cell=cell,
        encoder_directions=encoder.directions,
        encoder_hidden_size=hidden_size,
        decoder_layers=decoder_layers,
        decoder_hidden_size=decoder_hidden_size,
        projection_size=projection_size,
    )
    scores = None
    without_attention = {
        "attention_size": (attention_size, None),
        "attention_heads": (attention_heads, 1),
        "attention_filters": (attention_filters, None),
        "attention_kernel": (attention_kernel, None),
        "coverage": (coverage, False),
        "local_attention": (local_attention, "none"),
        "attention_window": (attention_window, None),
    }
    for name, (value, off) in without_attention.items():
        if attention == "none" and value != off:
            raise ValueError(
                f"{name} is {value}, but attention is none: choose an attention, or leave it out"
            )
    if attention != "none":
        scores = Attention(
            kind=attention,
            query_size=decoder_hidden_size if projection_size is None else projection_size,
            memory_size=encoder.output_size,
            attention_size=attention_size,
            heads=attention_heads,
            filters=attention_filters,
            kernel=attention_kernel,
            coverage=coverage,
            local=local_attention,
            window=attention_window,
            truncation=truncation,
        )
    elif bridge == "zero":
        raise ValueError(
            "bridge=zero with attention=none gives the decoder nothing of the source: choose an "
            "attention, or bridge=copy or bridge=linear"
        )
    decoder = Decoder(
        vocabulary_size=target_vocabulary_size,
        pad_id=pad_id,
        cell=cell,
        embedding_size=embedding_size,
        embedding_rank=embedding_rank,
        shared_embedding=encoder.embedding if share_embeddings else None,
        hidden_size=decoder_hidden_size,
        projection_size=projection_size,
        layers=decoder_layers,
        attention=scores,
        memory_size=encoder.output_size,
        input_feeding=input_feeding,
        query_state=query_state,
        layer_connection=layer_connection,
        copy_mechanism=copy_mechanism,
        embedding_dropout=embedding_dropout,
        layer_dropout=layer_dropout,
        output_dropout=output_dropout,
        word_dropout=word_dropout,
        weight_dropout=weight_dropout,
        zoneout_hidden=zoneout_hidden,
        zoneout_cell=zoneout_cell,
        truncation=truncation,
        variational_dropout=variational_dropout,
        tie_embeddings=tie_embeddings,
    )
    connected = [*encoder.connections, *decoder.connections]
    if layer_connection != "none" and all(one.kind == "none" for one in connected):
        raise ValueError(
            f"layer_connection is {layer_connection}, but no layer above the first has an input "
            "as wide as its output and a reader above it: use more encoder_layers or "
            "decoder_layers, or layer_connection=none"
        )
    return EncoderDecoder(encoder=encoder, bridge=joined, decoder=decoder)
