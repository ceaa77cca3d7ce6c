import MetalCandle
print(MetalCandleRuntime.version)
