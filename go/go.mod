module example.com/metal-candle/go

go 1.24
