// Signs in one of C#'s ways: mono Sign.exe HOW SIGN MESSAGE SIGNATURE; eight of them take MESSAGE.0 to MESSAGE.7.
using System;
using System.IO;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;

static class Sign
{
    static string sign;

    static FileStream Open()
    {
        return new FileStream(sign, FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite);
    }

    static void Descriptor(string message, string signature)
    {
        using (var f = Open())
        {
            var data = File.ReadAllBytes(message);
            f.Write(data, 0, data.Length);
            f.Flush();
            var result = new byte[8192];
            var n = f.Read(result, 0, result.Length);
            File.WriteAllBytes(signature, result.Take(n).ToArray());
        }
    }

    static void Slot(string message, string signature)
    {
        var slot = sign + ".d/" + Path.GetFileName(signature);
        File.WriteAllBytes(slot, File.ReadAllBytes(message));
        using (var f = File.OpenRead(slot))
        using (var to = File.Create(signature))
            f.CopyTo(to);
        File.Delete(slot);
    }

    static void Eight(string message, string signature, Action<string, string> work)
    {
        var errors = new Exception[8];
        var all = Enumerable.Range(0, 8).Select(n => new Thread(() =>
        {
            try { work(message + "." + n, signature + "." + n); }
            catch (Exception e) { errors[n] = e; }
        })).ToList();
        all.ForEach(t => t.Start());
        all.ForEach(t => t.Join());
        foreach (var e in errors)
            if (e != null)
                throw e;
    }

    static int Main(string[] args)
    {
        try
        {
            Run(args);
            return 0;
        }
        catch (Exception e)
        {
            Console.Error.WriteLine(e);
            return 1;
        }
    }

    static void Run(string[] args)
    {
        sign = args[1];
        string message = args[2], signature = args[3];
        switch (args[0])
        {
            case "FileStream":
                Descriptor(message, signature);
                break;
            case "seek":
                using (var f = Open())
                {
                    var data = File.ReadAllBytes(message);
                    f.Write(data, 0, data.Length);
                    f.Seek(0, SeekOrigin.Begin);
                    using (var to = File.Create(signature))
                        f.CopyTo(to);
                }
                break;
            case "CopyTo":
                using (var f = Open())
                using (var from = File.OpenRead(message))
                using (var to = File.Create(signature))
                {
                    from.CopyTo(f);
                    f.Flush();
                    f.CopyTo(to);
                }
                break;
            case "async":
                using (var f = Open())
                {
                    var data = File.ReadAllBytes(message);
                    f.WriteAsync(data, 0, data.Length).Wait();
                    f.FlushAsync().Wait();
                    var result = new byte[8192];
                    var n = f.ReadAsync(result, 0, result.Length).Result;
                    File.WriteAllBytes(signature, result.Take(n).ToArray());
                }
                break;
            case "files":
                File.WriteAllBytes(sign, File.ReadAllBytes(message));
                File.WriteAllBytes(signature, File.ReadAllBytes(sign));
                break;
            case "streams":
                File.WriteAllBytes(sign, File.ReadAllBytes(message));
                using (var f = File.OpenRead(sign))
                using (var to = File.Create(signature))
                    f.CopyTo(to);
                break;
            case "slot":
                Slot(message, signature);
                break;
            case "eight":
                Eight(message, signature, Descriptor);
                break;
            case "eight-slots":
                Eight(message, signature, Slot);
                break;
            case "eight-files":
                var barrier = new Barrier(8);
                Eight(message, signature, (m, s) =>
                {
                    using (var f = new FileStream(sign, FileMode.Open, FileAccess.Write, FileShare.ReadWrite))
                    {
                        var data = File.ReadAllBytes(m);
                        f.Write(data, 0, data.Length);
                    }
                    barrier.SignalAndWait(30000);
                    using (var f = new FileStream(sign, FileMode.Open, FileAccess.Read, FileShare.ReadWrite))
                    using (var to = File.Create(s))
                        f.CopyTo(to);
                });
                break;
            default:
                throw new ArgumentException(args[0]);
        }
    }
}
