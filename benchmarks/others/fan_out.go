// A goroutine for each item behind a semaphore, which is how bounded fan-out is written in Go.
//
//	go build fan_out.go && ./fan_out COUNT LIMIT ROUNDS
//
// Prints the microseconds of wall time and of CPU time that an item takes, a line a round.
package main

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func number(at int) int {
	value, err := strconv.Atoi(os.Args[at])
	if err != nil {
		panic(err)
	}
	return value
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

//go:noinline
func work(item int) int { return item }

func fanOut(count, limit int) []int {
	results := make([]int, count)
	tokens := make(chan struct{}, limit)
	var group sync.WaitGroup
	for item := 0; item < count; item++ {
		tokens <- struct{}{}
		group.Add(1)
		go func(item int) {
			defer group.Done()
			results[item] = work(item)
			<-tokens
		}(item)
	}
	group.Wait()
	return results
}

func main() {
	count, limit, rounds := number(1), number(2), number(3)
	for round := 0; round < rounds; round++ {
		began, cpu := time.Now(), cpuTime()
		results := fanOut(count, limit)
		wall, used := time.Since(began), cpuTime()-cpu
		for item, result := range results {
			if result != item {
				panic("a wrong result")
			}
		}
		perItem := 1000 * float64(count)
		fmt.Println(float64(wall.Nanoseconds())/perItem, float64(used.Nanoseconds())/perItem)
	}
}
