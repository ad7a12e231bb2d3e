"use strict";
// Players: one sounds at a time, one playhead for a figure, and the place is kept from player to player.
// Without this script every sound has the browser's own controls.
const players = [];
let current = null;

for (const figure of document.querySelectorAll(".player")) {
  const playhead = figure.querySelector(".playhead");
  const lines = figure.querySelectorAll(".line");
  for (const row of figure.querySelectorAll(".row")) {
    const audio = row.querySelector("audio");
    if (!audio) continue;
    const button = row.querySelector("button");
    const player = { figure, playhead, lines, audio, button, name: button.getAttribute("aria-label").slice(5) };
    players.push(player);
    audio.controls = false;
    button.hidden = false;
    button.addEventListener("click", () => (audio.paused ? play(player) : audio.pause()));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.5, ArrowRight: 0.5 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      play(player, Math.max(0, audio.currentTime + step));
    });
    row.querySelector(".plot").addEventListener("click", (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      const length = Number(figure.dataset.seconds);
      play(player, (length * (event.clientX - box.left)) / box.width);
    });
    audio.addEventListener("play", () => show(player));
    audio.addEventListener("pause", () => show(player));
    audio.addEventListener("ended", () => { audio.currentTime = 0; show(player); });
    audio.addEventListener("seeked", () => show(player));
  }
}

function play(player, seconds) {
  const before = current;
  if (before && before !== player) {
    if (seconds === undefined && before.figure === player.figure && !before.audio.paused) seconds = before.audio.currentTime;
    before.audio.pause();
  }
  current = player;
  const { audio } = player;
  const go = () => { audio.currentTime = Math.min(seconds, audio.duration); };
  if (seconds !== undefined) audio.readyState ? go() : audio.addEventListener("loadedmetadata", go, { once: true });
  audio.play().catch((error) => { if (error.name !== "AbortError") throw error; }); // stopped before it began
}

function show(player) {
  const { figure, playhead, lines, audio, button } = player;
  const playing = !audio.paused;
  button.classList.toggle("playing", playing);
  button.setAttribute("aria-label", (playing ? "Pause " : "Play ") + player.name);
  if (player !== current) return;
  figure.classList.toggle("playing", playing);
  for (const line of lines) line.classList.toggle("on", line.dataset.system === button.dataset.system);
  playhead.hidden = audio.currentTime === 0 && !playing;
  playhead.style.setProperty("--at", Math.min(1, audio.currentTime / Number(figure.dataset.seconds)));
  if (playing) requestAnimationFrame(() => show(player));
}
