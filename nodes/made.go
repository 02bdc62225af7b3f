package nodes

import (
	"context"

	"github.com/parsecfs/parsecfs/nodes/transaction"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/psa/pki"
)

// made is an operation whose Run is made here, of what the provider says or does.
type made struct {
	operation
	run func(o *operation, op psa.Op) psa.Run
}

func makes(run func(o *operation, op psa.Op) psa.Run) func(operation) transaction.Operation {
	return func(o operation) transaction.Operation { return &made{o, run} }
}

func (m *made) Begin(_ context.Context, in transaction.Inputs, length int) (psa.Run, bool, error) {
	op, err := m.resolve(in, length)
	if err != nil {
		return nil, false, err
	}
	return m.run(&m.operation, op), false, nil
}

// maxQuestions bounds the questions of one request, in bytes.
const maxQuestions = 64 << 10

// canDo answers questions about the provider.
func canDo(o *operation, _ psa.Op) psa.Run {
	return psa.WholeRun(maxQuestions, func(_ context.Context, questions []byte) (map[string][]byte, error) {
		answers, err := psa.Answer(psa.WithCSR(o.at.provider.Capabilities()), questions)
		return map[string][]byte{"answers": answers}, err
	})
}

// certify makes a certificate request, which the key signs as a message.
func certify(o *operation, op psa.Op) psa.Run {
	return pki.RequestRun(o.key.Public, op.Algorithm, func(ctx context.Context, message []byte) ([]byte, error) {
		op.Operation, op.Inputs = psa.Sign, nil
		result, err := o.whole(ctx, op, message)
		return result.Outputs["signature"], err
	})
}

// export gives the key in the format that is asked for.
func export(o *operation, op psa.Op) psa.Run {
	return psa.FormattedRun(o.key.Attributes.Type, func(ctx context.Context, inputs map[string][]byte) (psa.Result, error) {
		op.Inputs = inputs
		return o.whole(ctx, op, nil)
	})
}

// whole runs an operation from its beginning to its end.
func (o *operation) whole(ctx context.Context, op psa.Op, message []byte) (psa.Result, error) {
	run, err := o.begin(ctx, op)
	if err != nil {
		return psa.Result{}, err
	}
	defer run.Abort()
	if _, err := run.Write(message); err != nil {
		return psa.Result{}, err
	}
	return run.Finish(ctx)
}
