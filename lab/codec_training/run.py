"""The training loop of a codec from random weights: its phases and its checkpoint.

First the codec learns to reproduce speech without codebooks. Then its codebooks are initialized from data and trained
with it, the first of them also to predict phones or a teacher's features. Last, it is trained against a discriminator.
In every phase, pitch is predicted from the latents. A step depends on its number and the weights alone, so that a run
is resumable at any step. A GPU records a step once and replays it (see `recorded_step`).

Source: Moshi technical report (arXiv:2410.00037), section 3.3; Defossez et al. 2022 (arXiv:2210.13438).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset
from transformers import MimiConfig, MimiModel

from mimi_bridge.losses.adversarial import discriminator_loss
from mimi_bridge.training.codebooks import fill_from_data, project_to_principal_directions, revive_unused

from .codec import UNQUANTIZED, TrainableMimi
from .corpus import CropBatch, SpeechCorpus
from .losses import LossWeights, audio_distances, balanced_losses, latents_losses
from .narrow_discriminator import BAND, NarrowDiscriminator
from .pitch_target import PitchReader
from .recorded_step import RecordedGradientStep

BETAS = (0.8, 0.99)
DISCRIMINATOR_LEARNING_RATE = 3e-4
WARMUP_STEPS = 100
UNQUANTIZED_SHARE = 0.25  # of the sequences, while codebooks learn
DROPOUT_SHARE = 0.25  # of the others: decoded from fewer acoustic codebooks
REVIVE_EVERY = 10
FRAMES_REMEMBERED = 10  # an entry averages at least this many frames, so that a small batch changes it little
FRAMES_PER_ENTRY = 25  # at least, for k-means
DISCRIMINATOR_SHARE = 0.5  # of the sequences of a step: the discriminator sees only these
DISCRIMINATOR_SECONDS = 0.48
MIN_RMS = 1e-3  # the discriminator's inputs are normalized to one level, but silence is not amplified
HEAD_START_STEPS = 300  # of the discriminator, before its losses count


@dataclass(frozen=True)
class Phase:
    """A phase of training.

    Attributes:
        name: `reconstruction`, `codebooks` or `adversarial`.
        num_steps: Its length.
        learning_rate: At its start; it falls to a tenth along a cosine.
    """

    name: str
    num_steps: int
    learning_rate: float


class CodecTraining:
    """Model, discriminator, their optimizers and progress: everything in a checkpoint.

    Args:
        config: Of the codec.
        corpus: To train on.
        phases: In order.
        batch_size: Crops a process and step.
        num_frames: Of a crop.
        discriminator_filters: Its width.
        seed: Of weights, crops and codebooks.
        accelerator: Device and processes.
        initial: A codec to start from, with its codebooks, instead of random weights.
        discriminator_share: Of the sequences of a step that the discriminator sees.
        discriminator_seconds: Length of the excerpt of each that it sees.
        discriminator_band: Share of the frequencies that its spectra show.
        num_workers: Processes that cut crops ahead of the steps; 0 cuts them in the training loop.
        weights: Of the losses.
    """

    def __init__(
        self,
        config: MimiConfig,
        corpus: SpeechCorpus,
        phases: list[Phase],
        batch_size: int,
        num_frames: int,
        discriminator_filters: int,
        seed: int,
        accelerator: Accelerator,
        initial: MimiModel | None = None,
        discriminator_share: float = DISCRIMINATOR_SHARE,
        discriminator_seconds: float = DISCRIMINATOR_SECONDS,
        discriminator_band: float = BAND,
        num_workers: int = 0,
        weights: LossWeights | None = None,
    ):
        torch.manual_seed(seed)  # every process starts from the same weights
        self.corpus, self.phases, self.seed, self.accelerator = corpus, phases, seed, accelerator
        self.batch_size, self.num_frames = batch_size, num_frames
        self.discriminator_share, self.discriminator_seconds, self.num_workers = (
            discriminator_share,
            discriminator_seconds,
            num_workers,
        )
        self.weights = weights or LossWeights()
        self.has_codebooks = initial is not None
        self.batches = _Batches(corpus, batch_size, num_frames, config.frame_size, seed, accelerator.process_index)
        decay = max(0.99, 1 - self._frames_per_step / (FRAMES_REMEMBERED * config.codebook_size))
        self.model = TrainableMimi(config, corpus.feature_dim or len(corpus.labels), decay)
        if initial is not None:
            self.model.load_mimi(initial, self._frames_per_step)
        self.model.to(accelerator.device)
        self.pitch_reader = PitchReader(config.hidden_size).to(accelerator.device)
        self.discriminator = NarrowDiscriminator(discriminator_filters, band=discriminator_band).to(accelerator.device)
        self.phase_number = self.phase_step = self.step = 0
        self.head_start_steps = HEAD_START_STEPS
        can_record = accelerator.device.type == "cuda" and accelerator.num_processes == 1
        self._gradient_step = RecordedGradientStep(self._take_gradient_step, can_record)
        self._begin_phase()

    @property
    def _frames_per_step(self) -> int:
        return self.batch_size * self.num_frames * self.accelerator.num_processes

    @property
    def phase(self) -> Phase:
        """The current one."""
        return self.phases[self.phase_number]

    @property
    def _hears_discriminator(self) -> bool:
        return self.phase_step >= self.head_start_steps

    def run(self) -> Iterator[dict[str, Tensor]]:
        """Train to the end of the last phase; yields each step's losses, scalars on the device, after the step."""
        batches = iter(self._loader())
        while True:
            while self.phase_step < self.phase.num_steps:
                losses = self._train_step(next(batches).to(self.accelerator.device))
                self.step, self.phase_step = self.step + 1, self.phase_step + 1
                yield losses
            if self.phase_number + 1 == len(self.phases):
                return
            self.phase_number, self.phase_step = self.phase_number + 1, 0
            self._begin_phase()

    def state_dict(self) -> dict:
        """Everything that the next step depends on."""
        return {
            "phase_number": self.phase_number,
            "phase_step": self.phase_step,
            "step": self.step,
            "has_codebooks": self.has_codebooks,
            "head_start_steps": self.head_start_steps,
            "model": self.model.state_dict(),
            "pitch_reader": self.pitch_reader.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Resume where `state_dict` was taken."""
        self.phase_number, self.phase_step, self.step = state["phase_number"], state["phase_step"], state["step"]
        self.has_codebooks, self.head_start_steps = state["has_codebooks"], state["head_start_steps"]
        self.model.load_state_dict(state["model"])
        self.pitch_reader.load_state_dict(state["pitch_reader"])
        self.discriminator.load_state_dict(state["discriminator"])
        self._begin_phase(fill=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        for optimizer in (self.optimizer, self.discriminator_optimizer):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):  # loaded to the CPU, as the file was
                    group["lr"] = group["lr"].to(self.accelerator.device)

    def auxiliary(self) -> dict:
        """The networks that train the codec and are not part of it: discriminator, pitch and label readouts."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "pitch_reader": self.pitch_reader.state_dict(),
            "readout": self.model.readout.state_dict(),
        }

    def load_auxiliary(self, auxiliary: dict) -> None:
        """Start from those of another run, trained on the same labels; the discriminator then needs no head start."""
        self.discriminator.load_state_dict(auxiliary["discriminator"])
        self.pitch_reader.load_state_dict(auxiliary["pitch_reader"])
        self.model.readout.load_state_dict(auxiliary["readout"])
        self.head_start_steps = 0

    def _begin_phase(self, fill: bool = True) -> None:
        model, phase = self.model, self.phase
        for projection in (model.semantic.project_out, model.acoustic.project_in, model.acoustic.project_out):
            projection.requires_grad_(phase.name != "reconstruction")  # decoded audio does not depend on it yet
        learning = [*model.parameters(), *self.pitch_reader.parameters()]
        self.parameters = [parameter for parameter in learning if parameter.requires_grad]
        self.optimizer = self._new_optimizer(self.parameters, phase.learning_rate)
        self.discriminator_optimizer = self._new_optimizer(
            list(self.discriminator.parameters()), DISCRIMINATOR_LEARNING_RATE
        )
        self._gradient_step.forget()
        if fill and phase.name != "reconstruction" and not self.has_codebooks:
            self._fill_codebooks()

    def _new_optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
        # On a GPU its step can be recorded, and its learning rate, a tensor, still be changed.
        on_gpu = self.accelerator.device.type == "cuda"
        rate = torch.tensor(learning_rate, device=self.accelerator.device) if on_gpu else learning_rate
        return torch.optim.AdamW(parameters, lr=rate, betas=BETAS, fused=on_gpu, capturable=on_gpu)

    def _set_learning_rate(self) -> None:
        warmup = min(1.0, (self.phase_step + 1) / WARMUP_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.phase_step / self.phase.num_steps)))
        rate = self.phase.learning_rate * warmup * (0.1 + 0.9 * cosine)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _loader(self) -> DataLoader:
        # The batches of all remaining steps.
        steps = range(self.step, self.step + sum(phase.num_steps for phase in self.phases[self.phase_number :]))
        on_gpu = self.accelerator.device.type == "cuda"
        return DataLoader(
            self.batches, batch_size=None, sampler=steps, num_workers=self.num_workers, pin_memory=on_gpu
        )

    def _generator(self) -> torch.Generator:
        # The same on every process.
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)

    @torch.no_grad()
    def _fill_codebooks(self) -> None:
        num_batches = -(-self.model.config.codebook_size * FRAMES_PER_ENTRY // self._frames_per_step)
        self.model.eval()
        batches = (self.batches.cut(self.step, number + 1) for number in range(num_batches))
        latents = [self._encode(batch.to(self.accelerator.device).audio) for batch in batches]
        gathered = self.accelerator.gather(torch.cat(latents))
        project_to_principal_directions(self.model.acoustic, gathered)
        for head in (self.model.semantic, self.model.acoustic):
            fill_from_data(head, gathered, self._frames_per_step, self._generator())
        self.has_codebooks = True

    def _encode(self, audio: Tensor) -> Tensor:
        return self.model.encoder(audio).latents.transpose(1, 2).flatten(0, 1)

    def _train_step(self, batch: CropBatch) -> dict[str, Tensor]:
        self.model.train()
        self._set_learning_rate()
        quantizes = self.phase.name != "reconstruction"
        inputs = batch.tensors() | {"excerpt": self._draw_excerpt()}
        if quantizes:
            inputs["num_acoustic"] = self._draw_num_acoustic()
        losses = self._gradient_step(inputs, key=(self.phase_number, self._hears_discriminator))
        latents = losses.pop("latents")
        if quantizes and self.step % REVIVE_EVERY == 0:
            gathered = self.accelerator.gather(latents.flatten(0, 1))
            for head in (self.model.semantic, self.model.acoustic):
                revive_unused(head, gathered, self._generator())
        return losses

    def _take_gradient_step(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        # Losses, and the latents; the host only launches it.
        inputs = dict(inputs)
        excerpt, num_acoustic = inputs.pop("excerpt"), inputs.pop("num_acoustic", None)
        batch = CropBatch(**inputs)
        output = self.model(batch.audio, num_acoustic)
        pitch_reader = self.pitch_reader if self.corpus.has_pitch else None
        side_losses, side = latents_losses(output, batch, pitch_reader, self.weights)
        if self.phase.name == "adversarial":
            losses, gradient = self._adversarial_losses(output.audio, batch.audio, excerpt)
            torch.autograd.backward([output.audio, side], [gradient, None])
        else:
            losses = audio_distances(output.audio, batch.audio, self.corpus.sampling_rate, self.weights)
            (self.weights.of_distances(losses) + side).backward()
        self._update(self.optimizer, self.parameters)
        outputs = losses | side_losses | {"latents": output.latents}
        return {name: value.detach() for name, value in outputs.items()}

    def _adversarial_losses(self, decoded: Tensor, audio: Tensor, excerpt: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        # Losses, and their gradient at the decoded audio; the discriminator takes its own step.
        leaf = decoded.detach().requires_grad_()
        rms = audio.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=MIN_RMS)
        rows = math.ceil(self.discriminator_share * len(audio))
        with parametrize.cached():  # one computation of the weights for both
            real, fake = (self.discriminator((x / rms)[:rows].index_select(-1, excerpt)) for x in (audio, leaf))
        losses = audio_distances(leaf, audio, self.corpus.sampling_rate, self.weights)
        distance = self.weights.of_distances(losses)
        adversarial, gradient = balanced_losses(real, fake, distance, leaf, self._hears_discriminator)
        losses |= adversarial
        losses["discriminator"] = discriminator_loss(real, fake)
        parameters = list(self.discriminator.parameters())
        losses["discriminator"].backward(inputs=parameters)
        self._update(self.discriminator_optimizer, parameters)
        return losses, gradient

    def _draw_excerpt(self) -> Tensor:
        # The samples of each crop that the discriminator sees, counted from its beginning.
        num_samples = self.num_frames * self.model.config.frame_size
        length = min(num_samples, round(self.discriminator_seconds * self.corpus.sampling_rate))
        first = torch.randint(num_samples - length + 1, (), generator=self._generator())
        return (first + torch.arange(length)).to(self.accelerator.device)

    def _draw_num_acoustic(self) -> Tensor:
        all_of_them = self.model.config.num_quantizers - 1
        generator = torch.Generator().manual_seed(
            (self.seed * 1_000_003 + self.step) * 64 + self.accelerator.process_index
        )
        fewer = torch.randint(0, all_of_them, (self.batch_size,), generator=generator)
        dice = torch.rand(2, self.batch_size, generator=generator)
        drawn = torch.where(dice[0] < DROPOUT_SHARE, fewer, all_of_them)
        drawn = torch.where(dice[1] < UNQUANTIZED_SHARE, UNQUANTIZED, drawn)
        return drawn.to(self.accelerator.device)

    def _update(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:  # processes must agree; one whose crops have no labels gives zeros
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        if self.accelerator.num_processes > 1:
            flat = self.accelerator.reduce(nn.utils.parameters_to_vector(gradients), "mean")
            nn.utils.vector_to_parameters(flat, gradients)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class _Batches(Dataset):
    # The batch of each step, whichever process cuts it.
    corpus: SpeechCorpus
    batch_size: int
    num_frames: int
    frame_size: int
    seed: int
    process_index: int

    def __getitem__(self, step: int) -> CropBatch:
        return self.cut(step, 0)

    def cut(self, step: int, number: int) -> CropBatch:
        # Number 0 of a step trains; further ones fill codebooks.
        seed = (self.seed, step, number, self.process_index + 1)
        return self.corpus.crops(self.batch_size, self.num_frames, self.frame_size, seed)
