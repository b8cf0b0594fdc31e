"""ClipCap: what a photo shows, in words (Mokady, Hertz and Bermano 2021)."""
