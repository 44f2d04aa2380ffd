"""One video: packets and times, frames and pixels, windows and shots, previews."""
