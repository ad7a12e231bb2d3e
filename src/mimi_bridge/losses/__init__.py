"""Losses on audio: functions of tensors, and the discriminator that scores what decoded speech sounds like."""
