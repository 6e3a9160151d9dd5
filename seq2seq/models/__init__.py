"""The encoder-decoder and its parts: recurrent layers, encoder, attention, bridge, decoder."""
