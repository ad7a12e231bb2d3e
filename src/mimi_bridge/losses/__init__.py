"""Losses on audio: functions of tensors, and the discriminator that judges what decoded speech sounds like."""
