// franz-go as a peer: the same job as rdkafka.c, the same words on stdin and stdout.
//
//	bench MODE BOOTSTRAP TOPIC RECORDS SIZE KEYED LINGER_MS CODEC BATCH_BYTES
//
// MODE is "burst" or "single". The values are in the file named by BENCH_VALUES. Says "ready" when
// warm, starts at "go", says "done", prints one JSON line, and stays until stdin ends.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const produceKey = 0

type counter struct{ requests, bytes atomic.Int64 }

func (c *counter) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, n int, _, _ time.Duration, _ error) {
	c.bytes.Add(int64(n))
	if key == produceKey {
		c.requests.Add(1)
	}
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	check(err)
	return n
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func client(args []string, hook *counter) *kgo.Client {
	linger, batch := number(args[6]), number(args[8])
	options := []kgo.Opt{
		kgo.SeedBrokers(strings.Split(args[1], ",")...),
		kgo.DefaultProduceTopic(args[2]),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(time.Duration(linger) * time.Millisecond),
		kgo.MaxBufferedRecords(250_000),
		kgo.WithHooks(hook),
		kgo.Dialer((&net.Dialer{Timeout: 10 * time.Second}).DialContext),
	}
	if batch > 0 {
		options = append(options, kgo.ProducerBatchMaxBytes(int32(batch)))
	}
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	options = append(options, kgo.ProducerBatchCompression(codecs[args[7]]))
	made, err := kgo.NewClient(options...)
	check(err)
	return made
}

func main() {
	args := os.Args[1:]
	records, size, keyed := number(args[3]), number(args[4]), args[5] == "1"
	data, err := os.ReadFile(os.Getenv("BENCH_VALUES"))
	check(err)
	distinct := len(data) / size
	keys := make([][]byte, 5000)
	for i := range keys {
		keys[i] = []byte(fmt.Sprintf("user-%05d", i*7919%5000))
	}
	var hook counter
	producer := client(args, &hook)
	ctx := context.Background()
	check(producer.ProduceSync(ctx, &kgo.Record{Value: data[:size]}).FirstErr())
	fmt.Println("ready")
	stdin := bufio.NewReader(os.Stdin)
	_, err = stdin.ReadString('\n')
	check(err)
	requests, bytes := hook.requests.Load(), hook.bytes.Load()
	var acked atomic.Int64
	var taken []int64
	started := time.Now()
	if args[0] == "single" {
		for i := 0; i < records; i++ {
			began := time.Now()
			at := i % distinct * size
			check(producer.ProduceSync(ctx, &kgo.Record{Value: data[at : at+size]}).FirstErr())
			taken = append(taken, time.Since(began).Nanoseconds())
			acked.Add(1)
		}
	} else {
		told := func(_ *kgo.Record, err error) {
			if err == nil {
				acked.Add(1)
			}
		}
		for i := 0; i < records; i++ {
			at := i % distinct * size
			record := &kgo.Record{Value: data[at : at+size]}
			if keyed {
				record.Key = keys[i%len(keys)]
			}
			producer.Produce(ctx, record, told)
		}
		check(producer.Flush(ctx))
	}
	elapsed := time.Since(started)
	fmt.Println("done")
	line, err := json.Marshal(map[string]any{
		"acked": acked.Load(), "seconds": elapsed.Seconds(), "taken_ns": taken,
		"requests": hook.requests.Load() - requests, "wire_bytes": hook.bytes.Load() - bytes,
	})
	check(err)
	fmt.Println(string(line))
	_, _ = stdin.ReadString('\n')
	producer.Close()
}
