"""Face restoration: detect faces, align them, restore them with a network, paste them back."""
