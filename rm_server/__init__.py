"""Stage 3: checkpoint → HTTP. Serves a ladder of reward models; meets its clients only in `finpercep.wire`."""
