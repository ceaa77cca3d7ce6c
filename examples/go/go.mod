module example.com/metal-candle/examples/go

go 1.24

require example.com/metal-candle/go v0.0.0

replace example.com/metal-candle/go => ../../go
